"""Devices other than the CPU: training, evaluating, editing and exporting work there, and steps do not wait for it.

Without a GPU, a device that is simulated in Python takes its place (tests/simulated_device.py).
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import simulated_device
import torch
from conftest import draw, tiny_config
from torch.utils import _pytree as pytree

import export_atlas
import export_layers
import only_edit
import only_evaluate
import rendering.trained_run
import training.loop
from grids.learner import GridLearner
from grids.step_graphs import StepGraphs
from media.clip import open_clip
from parallel.side_by_side import Cores
from rendering.trained_run import open_run
from training.networks import NetworkLearner
from training.runs import start_run
from unwrap_utils import load_video

pytestmark = pytest.mark.slow

FRAMES = 4  # of the clip; operations on the simulated device take long
LEARNERS = {"grid": GridLearner, "mlp": NetworkLearner}
PROGRESSES = (0.0, 0.1, 0.3, 0.5, 0.8, 0.9)  # Parts of the run that are done: two at each resolution of the grids.

needs_simulation = pytest.mark.skipif(
    simulated_device.DEVICE is None,
    reason="there is a CUDA GPU, or this torch has no interface for devices written in Python",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


class Generator(torch.Generator):
    """A generator of random numbers on the CPU that claims to be on another device."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.claimed_device = torch.device(device)
        return self

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.claimed_device


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("device_data"), width=96, height=64, frames=FRAMES)


def device_config(clip, results, representation):
    own = {"light": True} if representation == "grid" else {"pretrain_iter_number": 25}
    return tiny_config(clip, results, representation=representation, maximum_number_of_frames=FRAMES, **own)


def start_learner(config, clip, device, generator):
    """Return a learner after its start."""
    torch.manual_seed(0)
    video = load_video(open_clip(clip, config), torch.device("cpu")).to(device)
    learner = LEARNERS[config.representation](config, video, generator.manual_seed(0))
    if isinstance(learner, GridLearner):
        learner.cores = Cores(1)  # as on a device; with another number of parts, sums are rounded otherwise
    learner.initialize(lambda model, atlases: None, Path("unused"))
    return learner


def is_simulated(model) -> bool:
    return {parameter.device for parameter in model.parameters()} == {simulated_device.DEVICE}


def train_losses(learner):
    """Do two steps at each part of the run; return the values of all terms."""
    progresses = [progress for progress in PROGRESSES for _ in range(2)]
    return [
        {name: float(value) for name, value in learner.step(iteration, progress).items()}
        for iteration, progress in enumerate(progresses)
    ]


@needs_simulation
@pytest.mark.parametrize(
    "operation",
    [
        lambda on_cpu, on_device: on_device + on_cpu,
        lambda on_cpu, on_device: on_cpu[on_device.long()],
        lambda on_cpu, on_device: on_device.index_add_(0, on_cpu.long(), on_device),
        lambda on_cpu, on_device: on_device.index_select(0, on_cpu.long()),
        lambda on_cpu, on_device: on_device.index_put_((on_device.long(),), on_cpu),
    ],
)
def test_the_simulation_refuses_tensors_on_two_devices(operation):
    with simulated_device.DeviceSimulation(), pytest.raises(RuntimeError, match="two devices"):
        operation(torch.zeros(3), torch.zeros(3, device=simulated_device.DEVICE))


@needs_simulation
def test_the_simulation_refuses_64_bit_floats():
    with simulated_device.DeviceSimulation(), pytest.raises(RuntimeError, match="64-bit floats"):
        torch.zeros(3, device=simulated_device.DEVICE).double()


@needs_simulation
@pytest.mark.parametrize(
    "operation",
    [
        lambda on_device: float(on_device[0]),
        lambda on_device: on_device.tolist(),
        lambda on_device: on_device.cpu(),
        lambda on_device: on_device.new_tensor([1.0]),
        lambda on_device: on_device[on_device > 0],
        lambda on_device: on_device.nonzero(),
        lambda on_device: on_device[torch.tensor([0])],
        lambda on_device: torch.zeros(2).to(on_device.device),
    ],
)
def test_the_simulation_records_operations_that_wait(operation):
    with simulated_device.DeviceSimulation() as simulation:
        on_device = torch.zeros(3, device=simulated_device.DEVICE)
        torch.zeros(2).to(on_device.device, non_blocking=True)
        assert simulation.waits == []
        operation(on_device)
        assert len(simulation.waits) == 1


@needs_simulation
@pytest.mark.parametrize("representation", LEARNERS)
def test_training_on_the_device_gives_the_losses_of_the_cpu(clip, tmp_path, representation):
    config = device_config(clip, tmp_path, representation)
    cpu_losses = train_losses(start_learner(config, clip, torch.device("cpu"), torch.Generator()))
    with simulated_device.DeviceSimulation():
        learner = start_learner(config, clip, simulated_device.DEVICE, Generator(simulated_device.DEVICE))
        device_losses = train_losses(learner)
    assert is_simulated(learner.model)
    for on_device, on_cpu in zip(device_losses, cpu_losses, strict=True):
        assert on_device == pytest.approx(on_cpu, rel=1e-4)  # Crops of other sizes are rounded otherwise.


@needs_simulation
@pytest.mark.parametrize("representation", LEARNERS)
def test_a_training_step_never_waits_for_the_device(clip, tmp_path, representation):
    with simulated_device.DeviceSimulation() as simulation:
        learner = start_learner(
            device_config(clip, tmp_path, representation),
            clip,
            simulated_device.DEVICE,
            Generator(simulated_device.DEVICE),
        )
        for number, progress in enumerate(PROGRESSES):
            learner.step(2 * number, progress)  # What happens once in a stage may wait.
            simulation.waits.clear()
            terms = learner.step(2 * number + 1, progress)
            assert simulation.waits == []
        float(next(iter(terms.values())))
        assert len(simulation.waits) == 1  # Reading a loss is recorded, so waits are noticed.


@needs_simulation
@pytest.mark.parametrize("mask_quality", ["rough", "exact"])
def test_a_recorded_step_would_be_the_same_for_any_batch(clip, tmp_path, mask_quality):
    """A graph is recorded once, so nothing may come from the host, and no shape or number may depend on the batch."""
    device = simulated_device.DEVICE
    config = replace(device_config(clip, tmp_path, "grid"), mask_quality=mask_quality)
    with simulated_device.DeviceSimulation() as simulation:
        learner = start_learner(config, clip, device, Generator(device))
        assert bool(learner.model.is_kept.cpu().all()) == (mask_quality == "exact")

        def list_operations(progress):
            """Do a step; return its operations, with the shapes of their tensors and all other arguments."""
            learner.round, learner.pending_pairs = 0, []  # A new round, so that all batches have as many frames.
            batch = learner.draw_batch(progress).to(device)
            simulation.waits, simulation.copies, simulation.operations = [], [], []
            learner.train_on(batch)
            operations, simulation.operations = simulation.operations, None
            assert simulation.copies == simulation.waits == []
            return operations

        for earlier, later in (PROGRESSES[:2], PROGRESSES[2:4], PROGRESSES[4:]):
            learner.step(0, earlier)
            assert list_operations(earlier) == list_operations(later)


def test_steps_that_cannot_be_recorded_are_done_one_operation_at_a_time_with_one_warning(
    clip, tmp_path, capsys, monkeypatch
):
    if torch.cuda.is_available():
        pytest.skip("the machine's GPU can record")
    cpu, config = torch.device("cpu"), device_config(clip, tmp_path, "grid")
    expected = train_losses(start_learner(config, clip, cpu, torch.Generator()))
    learner = start_learner(config, clip, cpu, torch.Generator())
    learner.graphs.is_used = True  # as on a GPU
    monkeypatch.setattr(StepGraphs, "has_failed", False)
    capsys.readouterr()
    assert train_losses(learner) == expected
    assert capsys.readouterr().err.count("cannot be recorded") == 1


@needs_gpu
def test_recorded_steps_train_like_ordinary_ones(clip, tmp_path):
    losses = []
    for cuda_graphs in (False, True):
        config = replace(device_config(clip, tmp_path, "grid"), cuda_graphs=cuda_graphs)
        learner = start_learner(config, clip, torch.device("cuda"), torch.Generator())
        losses.append(train_losses(learner))
        assert bool(learner.graphs.recordings) == cuda_graphs
    for ordinary, recorded in zip(*losses, strict=True):
        assert recorded == pytest.approx(ordinary, rel=1e-2)


@needs_gpu
def test_training_goes_on_after_a_recording_that_fails(clip, tmp_path, capsys, monkeypatch):
    learner = start_learner(device_config(clip, tmp_path, "grid"), clip, torch.device("cuda"), torch.Generator())
    train_on = learner.train_on

    def wait_in_the_middle(batch):
        terms = train_on(batch)
        float(terms["color"])  # A graph cannot hold this.
        return terms

    monkeypatch.setattr(learner, "train_on", wait_in_the_middle)
    monkeypatch.setattr(StepGraphs, "has_failed", False)
    assert all(np.isfinite(list(terms.values())).all() for terms in train_losses(learner))
    assert capsys.readouterr().err.count("cannot be recorded") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@needs_gpu
@pytest.mark.parametrize("representation", LEARNERS)
def test_a_training_step_never_waits_for_a_gpu(clip, tmp_path, representation):
    device = torch.device("cuda")
    config = replace(device_config(clip, tmp_path, representation), cuda_graphs=False)
    learner = start_learner(config, clip, device, torch.Generator(device))
    for number, progress in enumerate(PROGRESSES):
        learner.step(2 * number, progress)
        torch.cuda.set_sync_debug_mode("error")  # a step that waits raises
        try:
            terms = learner.step(2 * number + 1, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(value.is_cuda and value.isfinite() for value in terms.values())


@needs_simulation
@pytest.mark.parametrize("representation", LEARNERS)
def test_scripts_work_on_the_device(clip, tmp_path, representation, monkeypatch):
    load = torch.load

    def load_to_device(path, map_location, **options):
        loaded = load(path, map_location="cpu", **options)
        return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(map_location), loaded)

    monkeypatch.setattr(torch, "load", load_to_device)
    monkeypatch.setattr(torch, "Generator", Generator)
    for module in (training.loop, rendering.trained_run):
        monkeypatch.setattr(module, "pick_device", lambda name=None: simulated_device.DEVICE)
    frame_paint, atlas_paint, atlas = tmp_path / "frame.png", tmp_path / "painted.png", tmp_path / "atlas"
    cv2.imwrite(str(frame_paint), draw_rectangle(64, 96))
    with simulated_device.DeviceSimulation():
        trainer = start_run(device_config(clip, tmp_path / "results", representation))
        trainer.run()
        assert is_simulated(trainer.model)
        assert is_simulated(open_run(trainer.folder).model)
        run = f"--trained_model_folder={trainer.folder}"
        only_evaluate.main([run, f"--output_folder={tmp_path / 'evaluation'}"])
        export_atlas.main([run, f"--output_folder={atlas}"])
        height, width = cv2.imread(str(atlas / "foreground.png"), cv2.IMREAD_UNCHANGED).shape[:2]
        cv2.imwrite(str(atlas_paint), draw_rectangle(height, width))
        only_edit.main([run, f"--output_folder={tmp_path / 'a'}", "--edit_frame", f"2:{frame_paint}"])
        painted = f"--edit_foreground_path={atlas_paint}"
        only_edit.main(
            [run, f"--output_folder={tmp_path / 'b'}", f"--atlas={atlas}", painted, "--edit_space", "native"]
        )
        export_layers.main([run, f"--output_folder={tmp_path / 'layers'}", f"--atlas={atlas}"])
    assert (tmp_path / "b" / "edited.png").is_file()


def draw_rectangle(height: int, width: int):
    """Return a transparent image (H, W, 4) with an opaque white rectangle in the middle."""
    paint = np.zeros((height, width, 4), np.uint8)
    paint[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 255
    return paint
