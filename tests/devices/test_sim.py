"""What the simulated device does as a GPU does, and the mistakes that it finds: see README.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

sim: Any = getattr(torch, "sim", None)  # in the worker


def on_sim(options: str = "devices=2") -> Callable[[Callable[[], None]], Callable[..., None]]:
    """Let a test run in the process that has the simulated device with these options."""

    def wrap(function: Callable[[], None]) -> Callable[..., None]:
        def test(sim_worker: Callable[[str], Any]) -> None:
            problem = sim_worker(options).call(__file__, function.__name__)
            assert problem is None, problem

        test.__doc__ = function.__doc__
        test.on_sim = function
        return test

    return wrap


@on_sim()
def test_a_small_network_trains_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 3, 3, padding=1),
    ).to("sim")
    images = torch.rand(4, 3, 16, 16).to("sim")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        loss = (network(images) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@on_sim()
def test_the_device_is_the_accelerator() -> None:
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("sim")
    assert torch.get_device_module("sim") is torch.sim
    torch.accelerator.synchronize()
    before = torch.accelerator.memory_allocated()
    kept = torch.empty(1000, device="sim")
    assert torch.accelerator.memory_allocated() - before == kept.nbytes
    assert torch.accelerator.max_memory_allocated() >= before + kept.nbytes


# ---- operators: the CPU's numbers, in the device's memory


@on_sim()
def test_views_share_memory_and_in_place_operators_change_it() -> None:
    whole = torch.arange(24.0, device="sim").reshape(2, 3, 4)
    whole.transpose(0, 1)[1:, :, ::2].mul_(-1)
    whole[:, 0].as_strided((2, 2), (12, 1)).zero_()
    whole[whole < -10] = torch.tensor(7.0)
    whole.index_put_(
        (torch.tensor([0]), torch.tensor([0])), torch.ones(4, device="sim"), accumulate=True
    )
    expected = torch.arange(24.0).reshape(2, 3, 4)
    expected.transpose(0, 1)[1:, :, ::2].mul_(-1)
    expected[:, 0, :2] = 0
    expected[expected < -10] = 7
    expected[0, 0] += 1
    assert torch.equal(whole.cpu(), expected)
    grown = torch.add(whole, 1, out=torch.empty(0, device="sim"))
    assert torch.equal(grown.cpu(), expected + 1)
    assert torch.fft.fft(whole.conj()).conj().imag.neg().shape == (2, 3, 4)


@on_sim()
def test_memory_formats_survive_the_copy_and_the_convolution() -> None:
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last).to("sim")
    convolution = torch.nn.Conv2d(3, 4, 3).to("sim", memory_format=torch.channels_last)
    videos = torch.rand(2, 3, 4, 8, 8).to(memory_format=torch.channels_last_3d).to("sim")
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert convolution(images).is_contiguous(memory_format=torch.channels_last)
    assert videos.is_contiguous(memory_format=torch.channels_last_3d)
    assert videos.cpu().is_contiguous(memory_format=torch.channels_last_3d)


def make_steps(device: str, amp: torch.dtype | None, **options: bool) -> torch.Tensor:
    """The weights of a network with convolutions, norms and attention after two steps."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.GroupNorm(2, 8),
        torch.nn.ConvTranspose2d(8, 8, 3),
        torch.nn.Conv2d(8, 8, 3, groups=2),
    ]
    encoder, expand, project = (
        torch.nn.Sequential(*layers),
        torch.nn.Conv3d(8, 8, (1, 3, 3)),
        torch.nn.Linear(8, 24),
    )
    network = torch.nn.ModuleList([encoder, expand, project]).to(device)
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, **options)
    for _ in range(2):
        with torch.autocast(device, dtype=amp or torch.bfloat16, enabled=amp is not None):
            features = expand(encoder(images)[:, :, None]).flatten(2).transpose(1, 2)
            assert features.dtype == (amp or torch.float32)
            heads = project(features)[:, None].chunk(3, dim=-1)
            loss = torch.nn.functional.scaled_dot_product_attention(*heads).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return torch.cat([weights.detach().flatten() for weights in network.parameters()]).cpu()


@on_sim()
def test_training_gives_the_numbers_of_the_cpu() -> None:
    for options in ({"foreach": True}, {"foreach": False}, {"fused": True}):
        torch.testing.assert_close(
            make_steps("sim", None, **options),
            make_steps("cpu", None, **options),
            rtol=1e-3,
            atol=1e-4,
        )


@on_sim()
def test_autocast_casts_what_gpus_cast() -> None:
    make_steps("sim", torch.bfloat16)
    make_steps("sim", torch.float16)
    with torch.autocast("sim", dtype=torch.bfloat16):
        assert (
            torch.nn.functional.linear(
                torch.ones(2, 2, device="sim"), torch.ones(2, 2, device="sim")
            ).dtype
            == torch.bfloat16
        )
        assert torch.ones(2, device="sim", dtype=torch.bfloat16).exp().dtype == torch.float32


@on_sim()
def test_gradient_scaler_skips_a_step_with_infinite_gradients() -> None:
    scaler, weights = (
        torch.amp.GradScaler("sim", init_scale=4.0),
        torch.ones(2, device="sim", requires_grad=True),
    )
    optimizer = torch.optim.SGD([weights], 0.5)
    for factor, expected in ((1.0, 0.5), (float("inf"), 0.5)):
        optimizer.zero_grad()
        scaler.scale((weights * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert weights.tolist() == [expected] * 2
    assert scaler.get_scale() == 2.0


@on_sim()
def test_parameters_stay_themselves_when_their_module_moves() -> None:
    network = torch.nn.Linear(2, 2)
    weight = network.weight
    network.to("sim")
    assert network.weight is weight
    assert weight.device.type == "sim"


@on_sim()
def test_tensors_are_saved_and_come_back() -> None:
    import copy
    import io

    from safetensors.torch import load, save

    tensor, file = torch.arange(6.0, device="sim"), io.BytesIO()
    torch.save({"tensor": tensor}, file)
    for place, device in ((None, "sim"), ("cpu", "cpu"), ("sim", "sim")):
        file.seek(0)
        loaded = torch.load(file, map_location=place)["tensor"]
        assert loaded.device.type == device
        assert torch.equal(loaded.cpu(), tensor.cpu())
    assert torch.equal(load(save({"tensor": tensor.cpu()}))["tensor"], tensor.cpu())
    assert copy.deepcopy(torch.nn.Linear(2, 2).to("sim")).weight.device.type == "sim"


# ---- devices


@on_sim()
def test_tensors_of_different_devices_are_refused() -> None:
    here, there, host = (torch.ones(3, 3, device=device) for device in ("sim:0", "sim:1", "cpu"))
    functional = torch.nn.functional
    for broken in (
        lambda: here + host,
        lambda: host.add_(here),
        lambda: here @ host,
        lambda: torch.cat([here, host]),
        lambda: functional.conv2d(here[None, None], host[None, None]),
        lambda: functional.linear(host, here),
        lambda: functional.embedding(torch.tensor([0]), here),
        lambda: torch.where(here > 0, host, here),
        lambda: here + there,
        lambda: torch._foreach_add([here], [there]),
        lambda: torch.sum(here, (0, 1), out=torch.tensor(0.0)),
        lambda: torch.tensor(0.0).add_(here[0, 0]),
    ):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            broken()
    with pytest.raises(TypeError, match="can't convert sim:0 device type tensor to numpy"):
        here.numpy()
    assert torch.equal(
        (here * torch.tensor(2.0)).cpu(), host * 2
    ), "a number on the host is allowed"
    assert torch.equal(here.to("sim:1").cpu(), host)


@on_sim()
def test_a_device_is_named_by_an_index_that_exists() -> None:
    for broken in (
        lambda: torch.ones(1, device="sim:2"),
        lambda: sim.set_device(2),
        lambda: torch.ones(1).to("sim:7"),
    ):
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            broken()
    with pytest.raises(ValueError, match="with a specified index"):
        sim.set_device("sim")
    assert sim.device_count() == torch.accelerator.device_count() == 2
    sim.set_device("sim:1")
    assert (sim.current_device(), torch.ones(1, device="sim").device.index) == (1, 1)
    torch.accelerator.set_device_index(0)
    with sim.device(1):
        assert torch.ones(1, device="sim").device.index == 1
    assert sim.current_device() == 0


# ---- random numbers


@on_sim()
def test_random_numbers_come_from_the_device_s_own_generator() -> None:
    torch.manual_seed(3)
    host_state = torch.get_rng_state()
    draws: list[Callable[[], torch.Tensor]] = [
        lambda: torch.randn(8, device="sim"),
        lambda: torch.empty(8, device="sim").normal_(),
        lambda: torch.rand(8, device="sim"),
        lambda: torch.randint(100, (8,), device="sim"),
        lambda: torch.randperm(50, device="sim"),
        lambda: torch.bernoulli(torch.full((50,), 0.5, device="sim")),
        lambda: torch.nn.functional.dropout(torch.ones(50, device="sim")),
        lambda: torch.multinomial(torch.ones(50, device="sim"), 8),
    ]
    first = [draw().cpu() for draw in draws]
    assert torch.equal(
        torch.get_rng_state(), host_state
    ), "a draw on the device changed the CPU's generator"
    torch.manual_seed(3)
    assert all(torch.equal(draw().cpu(), drawn) for draw, drawn in zip(draws, first, strict=True))
    torch.manual_seed(3)
    assert not torch.equal(torch.randn(8), first[0])


@on_sim()
def test_generator_states_are_kept_exactly() -> None:
    torch.randn(3, device="sim:1")
    states = [sim.get_rng_state(device) for device in range(2)]
    drawn = [torch.randn(5, device=f"sim:{device}").cpu() for device in range(2)]
    sim.set_rng_state(states[1], "sim:1")
    assert torch.equal(torch.randn(5, device="sim:1").cpu(), drawn[1])
    sim.set_rng_state(states[0], 0)
    with torch.random.fork_rng([0], device_type="sim"):
        torch.manual_seed(1)
        torch.randn(5, device="sim:0")
    assert torch.equal(torch.randn(5, device="sim:0").cpu(), drawn[0])
    one, other = (torch.Generator("sim").manual_seed(5) for _ in range(2))
    assert torch.equal(
        torch.randn(4, device="sim", generator=one).cpu(),
        torch.randn(4, device="sim", generator=other).cpu(),
    )
    assert (one.initial_seed(), one.device.type) == (5, "sim")


@on_sim()
def test_a_resume_with_the_cpu_s_state_alone_draws_other_numbers() -> None:
    """The double saves the state of the CPU's generator only."""
    state = torch.get_rng_state()
    drawn = torch.randn(5, device="sim").cpu()
    torch.set_rng_state(state)
    assert not torch.equal(torch.randn(5, device="sim").cpu(), drawn)
    with pytest.raises(
        RuntimeError, match="Expected a 'sim' device type for generator but found 'cpu'"
    ):
        torch.randn(5, device="sim", generator=torch.Generator())


# ---- streams run late


def pin(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).pin_memory()


@on_sim()
def test_a_copy_with_its_waits_gives_its_values() -> None:
    stream, source = sim.Stream(), pin(1, 2, 3)
    with sim.stream(stream):
        assert sim.current_stream() == stream
        copy = source.to("sim", non_blocking=True)
    sim.current_stream().wait_stream(stream)
    copy.record_stream(sim.current_stream())
    back = torch.empty(3, pin_memory=True)
    back.copy_(copy * 2, non_blocking=True)
    event = sim.current_stream().record_event()
    assert not event.query(), "work takes time"
    event.synchronize()
    assert event.query()
    assert back.tolist() == [2, 4, 6]
    source.fill_(0)
    assert copy.cpu().tolist() == [1, 2, 3]


@on_sim()
def test_plain_torch_streams_and_events_do_it_too() -> None:
    stream, source = torch.Stream(device="sim"), pin(1, 2)
    with stream:
        copy = source.to("sim", non_blocking=True)
        event = torch.Event("sim")
        event.record()
    torch.accelerator.current_stream().wait_event(event)
    copy.record_stream(torch.accelerator.current_stream())
    assert (copy + 1).tolist() == [2, 3]


@on_sim()
def test_events_tell_the_time_between_them() -> None:
    begin, end = (sim.Event(enable_timing=True) for _ in range(2))
    begin.record()
    end.record(sim.current_stream())
    end.synchronize()
    assert begin.elapsed_time(end) >= 0


@on_sim()
def test_a_host_that_reads_before_the_event_reads_nan() -> None:
    result = torch.ones(4, device="sim")
    back = torch.zeros(4, pin_memory=True)
    back.copy_(result, non_blocking=True)
    assert back.isnan().all()
    result * 2  # the device goes on; the host still doesn't know
    assert back.isnan().all()
    torch.accelerator.synchronize()
    assert back.tolist() == [1] * 4


@on_sim()
def test_compute_that_misses_wait_stream_reads_nan_and_is_reported() -> None:
    target = torch.zeros(3, device="sim")
    stream = sim.Stream()
    stream.wait_stream(sim.current_stream())
    source = pin(1, 2, 3)
    with sim.stream(stream):
        target.copy_(source, non_blocking=True)
    late = target + 1
    (text,) = sim.violations()
    assert "reads memory of 12 bytes on sim:0 that stream" in text
    assert "use wait_stream or wait_event" in text
    assert late.isnan().all()
    stream.synchronize()
    assert (target + 1).tolist() == [2, 3, 4]


@on_sim()
def test_streams_that_compute_out_of_order_are_reported_where_the_numbers_are_right() -> None:
    stream, shared = sim.Stream(), torch.ones(3, device="sim")
    with sim.stream(stream):
        shared.sum()
    assert "that the default stream of sim:0 writes" in sim.violations()[0]
    shared.add_(1)
    assert f"that stream {stream.stream_id} of sim:0 reads" in sim.violations()[0]


@on_sim()
def test_a_mistake_is_raised_when_the_host_next_synchronizes() -> None:
    with sim.stream(sim.Stream()):
        wrong = torch.ones(3, device="sim")
    late = wrong + 1
    for synchronize in (late.sum().item, late.cpu, torch.accelerator.synchronize):
        wrong + 1
        with pytest.raises(RuntimeError, match="sim found mistakes"):
            synchronize()
    assert len(sim.violations()) > 0
    torch.accelerator.synchronize()


@on_sim()
def test_pinned_memory_that_is_written_before_its_copy_is_done_is_reported() -> None:
    buffer = pin(1, 2, 3)
    for go_on in (
        False,
        True,
    ):  # in the second round the device has copied, and the host doesn't know
        copy = buffer.to("sim", non_blocking=True)
        if go_on:
            copy + 1
        buffer.numpy()[0] += 1
        with pytest.raises(
            RuntimeError, match=r"pinned memory of 12 bytes was changed while a copy .* was pending"
        ):
            torch.accelerator.synchronize()
        sim.violations()
    copy = buffer.to("sim", non_blocking=True)
    sim.current_stream().record_event().synchronize()
    buffer.numpy()[0] += 1
    torch.accelerator.synchronize()
    assert copy.cpu()[0] == buffer[0] - 1


@on_sim()
def test_freed_pinned_memory_outlives_its_pending_copy() -> None:
    copies = []
    for number in range(8):
        copies.append(torch.full((1000,), float(number)).pin_memory().to("sim", non_blocking=True))
        torch.full((1000,), -1.0).pin_memory()
    assert [copy.sum().item() for copy in copies] == [1000 * number for number in range(8)]


@on_sim()
def test_memory_freed_while_another_stream_uses_it_is_reported() -> None:
    stream = sim.Stream()
    for remedy in ("nothing", "record_stream", "wait"):
        block = torch.ones(5, device="sim")
        stream.wait_stream(sim.current_stream())
        with sim.stream(stream):
            block * 2
        if remedy == "record_stream":
            block.record_stream(stream)
        if remedy == "wait":
            sim.current_stream().wait_stream(stream)
        del block
        found = sim.violations()
        if remedy == "nothing":
            assert "call record_stream" in found.pop()
        assert found == []


@on_sim()
def test_unpinned_memory_is_copied_while_the_host_waits() -> None:
    source, stream = torch.tensor([1.0, 2.0]), sim.Stream()
    with stream:
        copy = source.to("sim", non_blocking=True)
        source.fill_(0)
        back = torch.empty(2)
        back.copy_(copy, non_blocking=True)
        assert back.tolist() == [1, 2]


@on_sim()
def test_pinned_memory_is_known() -> None:
    assert torch.empty(3, pin_memory=True).is_pinned()
    assert torch.ones(3).pin_memory()[1:].is_pinned()
    assert not torch.ones(3).is_pinned()
    assert torch.empty(3, pin_memory=True).isnan().all()
    assert torch.empty(3, device="sim").isnan().all()


@on_sim()
def test_autograd_over_streams_is_in_order() -> None:
    weights, stream = torch.ones(3, device="sim", requires_grad=True), sim.Stream()
    stream.wait_stream(sim.current_stream())
    with sim.stream(stream):
        loss = (weights * 2).square().sum()
        loss.backward()
    sim.current_stream().wait_stream(stream)
    assert weights.grad is not None
    weights.grad.record_stream(sim.current_stream())
    assert weights.grad.tolist() == [8] * 3


@on_sim()
def test_synchronizations_are_counted() -> None:
    tensor, pinned = torch.ones(4, device="sim"), torch.ones(4).pin_memory()
    actions = (
        (1, tensor[0].item),
        (1, lambda: bool(tensor.sum() > 0)),
        (1, tensor.nonzero),
        (1, lambda: tensor[tensor > 0]),
        (1, tensor.cpu),
        (1, lambda: torch.ones(4).to("sim")),
        (1, lambda: torch.tensor([1.0], device="sim")),
        (1, lambda: pinned.to("sim")),
        (1, torch.accelerator.synchronize),
        (1, lambda: sim.current_stream().synchronize()),
        (1, lambda: sim.current_stream().record_event().synchronize()),
        (0, lambda: pinned.to("sim", non_blocking=True)),
        (0, lambda: tensor.to("cpu", non_blocking=True)),
        (0, lambda: (tensor * 2).sum().clamp(min=1)),
        (0, lambda: torch.zeros(3, device="sim").normal_()),
        (0, lambda: tensor[1:3].add_(1)),
    )
    counts = []
    for _, action in actions:
        sim.reset_num_synchronizations()
        action()
        counts.append(sim.num_synchronizations())
    assert counts == [count for count, _ in actions], counts


# ---- devices that lack something


@on_sim("no-float64,no-bf16,no-streams,no-pinning")
def test_what_a_device_lacks_is_refused() -> None:
    host = torch.ones(2, dtype=torch.float64)
    words = (
        "Cannot convert a sim Tensor to float64 dtype as the sim framework doesn't support float64."
        " Please use float32 instead."
    )
    for broken in (
        lambda: host.to("sim"),
        lambda: torch.ones(2, device="sim").double(),
        lambda: torch.zeros(2, device="sim").sum(dtype=torch.float64),
    ):
        with pytest.raises(TypeError) as caught:
            broken()
        assert str(caught.value) == words
    assert torch.ones(2, device="sim").to("cpu", torch.float64).tolist() == [1, 1]
    with pytest.raises(TypeError, match="BFloat16 is not supported on sim"):
        torch.ones(2, device="sim").bfloat16()
    with (
        pytest.raises(UserWarning, match="the target dtype is not supported"),
        torch.autocast("sim", dtype=torch.bfloat16),
    ):
        pass
    assert sim.get_amp_supported_dtype() == [torch.float16]
    assert not sim.is_bf16_supported()
    with pytest.raises(RuntimeError, match="no pinned memory"):
        torch.ones(2).pin_memory()
    assert not torch.ones(2).is_pinned()
    for stream in (lambda: torch.Stream(device="sim"), lambda: torch.Event("sim").record()):
        with pytest.raises(RuntimeError, match=r"no (streams|events)"):
            stream()
    assert not hasattr(sim, "Stream")
    assert (torch.ones(2, device="sim") * host[0]).tolist() == [
        1,
        1,
    ], "a number on the host may have any type"


@on_sim("devices=0")
def test_a_driver_without_a_device_is_not_available() -> None:
    assert not sim.is_available()
    assert not torch.accelerator.is_available()


# ---- processes


def test_torch_loads_the_device_by_itself(run_on_sim: Any) -> None:
    done = run_on_sim("import torch; print(torch.zeros(2, device='sim').device)")
    assert (done.stdout, done.stderr) == ("sim:0\n", "")


def test_without_the_switch_there_is_no_device(run_on_sim: Any) -> None:
    done = run_on_sim(
        "import torch, sys; print(hasattr(torch, 'sim'), 'latentkit_sim.backend' in sys.modules)",
        "",
    )
    assert (done.stdout, done.stderr) == ("False False\n", "")


def test_an_unknown_option_is_named(run_on_sim: Any) -> None:
    assert "unknown option 'no-streets'" in run_on_sim("import torch", "no-streets").stderr


def test_a_missing_compiler_is_said(run_on_sim: Any, tmp_path: Any) -> None:
    code = f"""
import os, pathlib
from latentkit_sim import compiling
os.environ.update(PATH="", CXX="")
compiling.BUILD = pathlib.Path({str(tmp_path)!r})
compiling.load_extension()
"""
    done = run_on_sim(code, "0")
    assert "needs a C++ compiler: install g++" in done.stderr


def test_a_process_ends_loudly_if_nobody_asked_for_its_mistakes(run_on_sim: Any) -> None:
    done = run_on_sim(
        "import torch; source = torch.ones(3).pin_memory(); "
        "source.to('sim', non_blocking=True); source.add_(1); print('end')"
    )
    assert (done.returncode, done.stdout) == (86, "end\n")
    assert "pinned memory of 12 bytes was changed" in done.stderr


def test_a_forked_process_cannot_use_the_device(run_on_sim: Any) -> None:
    code = """
import multiprocessing, torch
def child():
    try: torch.ones(1, device="sim")
    except RuntimeError as error: print(error)
torch.ones(1, device="sim")
process = multiprocessing.get_context("fork").Process(target=child)
process.start(); process.join()
"""
    done = run_on_sim(code)
    assert done.stdout.startswith("Cannot re-initialize sim in forked subprocess"), done.stderr


def test_distributed_data_parallel_averages_over_gloo(run_on_sim: Any, tmp_path: Any) -> None:
    code = f"""
import torch, torch.distributed as dist, torch.multiprocessing as mp
def run(rank):
    dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
    network = torch.nn.Linear(3, 1).to(f"sim:{{rank}}")
    network = torch.nn.parallel.DistributedDataParallel(network, device_ids=[rank])
    network(torch.full((2, 3), float(rank), device=f"sim:{{rank}}")).sum().backward()
    assert network.module.weight.grad.tolist() == [[1.0] * 3]
    gathered = [torch.empty(1, device=f"sim:{{rank}}") for _ in range(2)]
    dist.all_gather(gathered, torch.full((1,), float(rank), device=f"sim:{{rank}}"))
    assert [part.item() for part in gathered] == [0, 1]
    dist.destroy_process_group()
if __name__ == "__main__":
    mp.start_processes(run, nprocs=2, start_method="spawn")
    print("both")
"""
    script = tmp_path / "two.py"
    script.write_text(code)
    done = run_on_sim(
        f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", "devices=2"
    )
    assert done.stdout == "both\n", done.stderr
