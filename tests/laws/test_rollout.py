"""Laws of the sampling loop: what it shares with diffusers, replay bit for bit, and fused gradients."""

import weakref

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flowopd.dynamics import Cps, FlowSde, Ode, windowed
from flowopd.errors import ConfigError
from flowopd.noise import Noise
from flowopd.objectives import ReverseKL
from flowopd.rollout import record, replay, rollout, sample
from flowopd.schedule import sigma_grid

SHAPE = (3, 6, 6)
STEPS = 5
SIGMAS = sigma_grid(STEPS)
MIXED = windowed(FlowSde(a=0.7), STEPS, start=1, length=2)


def start(batch):
    noise = Noise(range(batch))
    return noise, noise.initial(SHAPE)


def test_the_ode_is_the_loop_of_diffusers(tiny_net, condition):
    net, cond = tiny_net(0), condition(2)
    _, x = start(2)
    ours = sample(net, Ode(), x, SIGMAS, cond, None)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t / 1000, cond), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamics", [Ode(), FlowSde(a=0.7)])
def test_samples_of_a_gaussian_flow_are_its_data(dynamics, gaussian_flow, condition):
    n = 4000
    noise = Noise(range(n))
    x = sample(gaussian_flow(1.5, 0.6), dynamics, noise.initial((2,)), sigma_grid(20, 1.0), condition(n), noise)
    assert (x.mean(0) - 1.5).abs().max() < 0.05 and (x.std(0) - 0.6).abs().max() < 0.05


@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("dynamics", [FlowSde(a=0.7), Cps(eta=0.7)])
def test_replay_gives_a_ratio_of_exactly_1(batch, dynamics, tiny_net, condition):
    net, cond = tiny_net(0), condition(batch)
    noise, x = start(batch)
    drawn = list(rollout(net, dynamics, x, SIGMAS, cond, noise))
    trajectory = record(net, dynamics, x, SIGMAS, cond, noise)
    for step in drawn[:-1]:
        again = replay(net, dynamics, trajectory, step.index, cond)
        assert torch.equal(trajectory.states[step.index + 1], step.x_next)
        ratio = (again.log_prob(step.x_next) - step.transition.log_prob(step.x_next)).exp()
        assert (ratio == 1).all() and ratio.requires_grad


def test_fused_gradients_are_those_of_the_recorded_trajectory(tiny_net, condition):
    """Backward at every yielded step, against the KL of replayed transitions summed."""
    student, teacher, cond, dynamics = tiny_net(0), tiny_net(1), condition(3), FlowSde(a=0.7)
    noise, x = start(3)
    elements = x[0].numel()
    for step in rollout(student, dynamics, x, SIGMAS, cond, noise, queried=range(STEPS)):
        weight = elements * dynamics.kl_weight(step.t, step.t_next)
        loss, _ = ReverseKL()(step.v, teacher(step.x, step.t, cond), weight)
        loss.sum().backward()
    fused = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()

    trajectory = record(student, dynamics, x, SIGMAS, cond, noise)
    kl = sum(
        replay(student, dynamics, trajectory, i, cond).kl(replay(teacher, dynamics, trajectory, i, cond)).sum()
        for i in range(STEPS)
    )
    kl.backward()
    for one, other in zip(fused, student.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_backward_between_steps_does_not_change_the_states(tiny_net, condition):
    student, cond = tiny_net(0), condition(2)
    noise, x = start(2)
    plain = record(student, FlowSde(a=0.7), x, SIGMAS, cond, noise)
    for step in rollout(student, FlowSde(a=0.7), x, SIGMAS, cond, noise, queried=(0, 3)):
        if step.v.requires_grad:
            step.v.square().sum().backward()
        assert torch.equal(step.x_next, plain.states[step.index + 1])


def test_only_queried_velocities_carry_a_gradient(tiny_net, condition):
    noise, x = start(2)
    with torch.no_grad():
        steps = list(rollout(tiny_net(0), FlowSde(a=0.7), x.requires_grad_(), SIGMAS, condition(2), noise, {1, 3}))
    assert [step.v.requires_grad for step in steps] == [False, True, False, True, False]
    assert not any(part.requires_grad for step in steps for part in (step.x, step.x_next, step.transition.mean))


def test_one_step_of_activations_is_alive_at_a_time(tiny_net, condition):
    """Counted by the tensors that autograd has saved and still holds."""

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor

    saved, alive = weakref.WeakSet(), []

    def pack(tensor):
        held = Saved(tensor)
        saved.add(held)
        return held

    noise, x = start(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        for step in rollout(tiny_net(0), FlowSde(a=0.7), x, SIGMAS, condition(2), noise, range(STEPS)):
            alive.append(len(saved))
            step.v.sum().backward()
            assert len(saved) == 0
    assert len(set(alive)) == 1 and alive[0] > 0


def test_rows_do_not_depend_on_their_batch(tiny_net, condition):
    net, cond = tiny_net(0), condition(4)
    noise, x = start(4)
    whole = sample(net, FlowSde(a=0.7), x, SIGMAS, cond, noise)
    for i in range(4):
        one = sample(net, FlowSde(a=0.7), x[i : i + 1], SIGMAS, cond.rows([i]), Noise([i]))
        torch.testing.assert_close(one[0], whole[i], rtol=1e-4, atol=1e-5)


def test_a_window_draws_noise_only_inside(tiny_net, condition):
    noise, x = start(2)
    steps = list(rollout(tiny_net(0), MIXED, x, SIGMAS, condition(2), noise))
    drawn = [not torch.equal(step.x_next, step.transition.mean) for step in steps]
    assert drawn == [False, True, True, False, False]


def test_sample_and_record_are_the_rollout(tiny_net, condition):
    net, cond = tiny_net(0), condition(2)
    noise, x = start(2)
    steps = list(rollout(net, MIXED, x, SIGMAS, cond, noise))
    trajectory = record(net, MIXED, x, SIGMAS, cond, noise)
    assert torch.equal(trajectory.states[:-1], torch.stack([step.x for step in steps]))
    assert torch.equal(trajectory.final, steps[-1].x_next)
    assert torch.equal(sample(net, MIXED, x, SIGMAS, cond, noise), trajectory.final)


def test_states_stay_in_float32_under_a_bf16_field(tiny_net, condition):
    net, cond = tiny_net(0).bfloat16(), condition(2).to(dtype=torch.bfloat16)

    def field(x, t, cond):
        return net(x.bfloat16(), t.bfloat16(), cond)

    noise, x = start(2)
    steps = list(rollout(field, FlowSde(a=0.7), x.bfloat16(), SIGMAS, cond, noise))
    assert all(step.v.dtype == torch.bfloat16 for step in steps)
    assert all(part.dtype == torch.float32 for step in steps for part in (step.x, step.transition.mean, step.x_next))


def test_rollouts_that_cannot_work_are_refused(tiny_net, condition):
    noise, x = start(2)
    net, cond = tiny_net(0), condition(2)
    for dynamics, sigmas, given, message in [
        (FlowSde(a=0.7), SIGMAS, None, "none was given"),
        (MIXED[:-1], SIGMAS, noise, "4 dynamics for 5 steps"),
        (Ode(), SIGMAS.flip(0), noise, "fall strictly"),
    ]:
        with pytest.raises(ConfigError, match=message):
            sample(net, dynamics, x, sigmas, cond, given)
