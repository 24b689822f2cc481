"""Small random models of the classes that the real judges use, as folders, and servers to ask."""

import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from threading import Event, Lock, Thread

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from flowopd.mini.encoders import clip_tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP of 24 pixels and 16 dimensions with the mini world's words."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**small, "image_size": 24, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory):
    """A Mask2Former with a Swin backbone for COCO's 80 classes, random."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    swin = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=10,
        num_labels=80,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return str(folder)


@dataclass
class Served:
    """A server of a test: its address, and the requests it got as (method, path, headers, JSON body)."""

    url: str
    requests: list = field(default_factory=list)


@pytest.fixture
def serve():
    """Starts HTTP servers; `answer(method, path, body, count)` gives (status, text) or (status, text, headers).

    `count` is the number of requests before this one. Text that is an iterator is sent part by part.
    """
    stopped, servers = Event(), []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body):
                with lock:
                    count = len(served.requests)
                    served.requests.append((self.command, self.path, dict(self.headers), body))
                status, text, *more = answer(self.command, self.path, body, count)
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    for part in [text] if isinstance(text, str) else text:
                        self.wfile.write(part.encode())
                        self.wfile.flush()

            def log_message(self, *_):
                pass

        lock = Lock()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        served = Served(f"http://127.0.0.1:{server.server_port}/v1")
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return served

    start.stopped = stopped
    yield start
    stopped.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def raw_server():
    """Starts servers that read a request, send some bytes, and then `drops` over and over, byte by byte."""
    stopped = Event()

    def start(said, drops):
        def answer():
            place, _ = listening.accept()
            with place, suppress(OSError):
                place.recv(1 << 16)
                place.sendall(said)
                for drop in cycle(drops):
                    place.sendall(bytes([drop]))
                    if stopped.wait(0.05):
                        return

        listening = socket.create_server(("127.0.0.1", 0))
        Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    stopped.set()


@pytest.fixture
def dead_url():
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
