"""The studio: a local web app over the folders of runs, while they train and afterwards.

`folders` finds runs and keeps every path inside them; `tail`, `table`, `onerun` and `pictures` read what a run writes;
`models`, `easel`, `blind` and `preferences` are the playground; `guard`, `app` and `server` put it on the web; `pages/`
is what a browser shows. torch and the model libraries are imported when the first picture is asked for.
"""
