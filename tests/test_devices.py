"""Another device than the CPU: training, evaluating, editing and exporting run there, and steps do not wait for it.

Without a GPU a device written in Python stands in (tests/elsewhere.py).
"""

import cv2
import elsewhere
import numpy as np
import pytest
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
from media.clip import open_clip
from rendering.trained_run import open_run
from training.loop import start_run
from training.networks import NetworkLearner
from unwrap_utils import load_video

LEARNERS = {"grid": GridLearner, "mlp": NetworkLearner}
SHARES = (0.0, 0.1, 0.3, 0.5, 0.8, 0.9)  # of the run: two steps at each resolution of the grids

needs_elsewhere = pytest.mark.skipif(
    elsewhere.DEVICE is None, reason="this torch has no interface for devices written in Python"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


class Generator(torch.Generator):
    """Random numbers that say they are drawn on a device, while the CPU draws them."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.said = torch.device(device)
        return self

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.said


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("device_data"), width=96, height=64, frames=6)


def settings(clip, results, representation):
    own = {"light": True} if representation == "grid" else {"pretrain_iter_number": 25}
    return tiny_config(clip, results, representation=representation, maximum_number_of_frames=6, **own)


def begun(config, clip, device, generator):
    """A learner after its start."""
    torch.manual_seed(0)
    video = load_video(open_clip(clip, config), torch.device("cpu")).to(device)
    learner = LEARNERS[config.representation](config, video, generator.manual_seed(0))
    learner.initialize(lambda model, atlases: None)
    return learner


def are_elsewhere(model) -> bool:
    return {parameter.device for parameter in model.parameters()} == {elsewhere.DEVICE}


def losses(learner):
    return [{name: float(value) for name, value in learner.step(i, s).items()} for i, s in enumerate(SHARES)]


@needs_elsewhere
@pytest.mark.parametrize(
    "mixing",
    [
        lambda here, there: there + here,
        lambda here, there: here[there.long()],
        lambda here, there: there.index_add_(0, here.long(), there),
        lambda here, there: there.index_select(0, here.long()),
        lambda here, there: there.index_put_((there.long(),), here),
    ],
)
def test_the_stand_in_refuses_tensors_on_two_devices(mixing):
    with elsewhere.Watched(), pytest.raises(RuntimeError, match="two devices"):
        mixing(torch.zeros(3), torch.zeros(3, device=elsewhere.DEVICE))


@needs_elsewhere
@pytest.mark.parametrize(
    "waiting",
    [
        lambda there: float(there[0]),
        lambda there: there.tolist(),
        lambda there: there.cpu(),
        lambda there: there.new_tensor([1.0]),
        lambda there: there[there > 0],
        lambda there: there.nonzero(),
        lambda there: there[torch.tensor([0])],
        lambda there: torch.zeros(2).to(there.device),
    ],
)
def test_the_stand_in_notes_what_waits(waiting):
    with elsewhere.Watched() as watched:
        there = torch.zeros(3, device=elsewhere.DEVICE)
        torch.zeros(2).to(there.device, non_blocking=True)
        assert watched.waits == []
        waiting(there)
        assert len(watched.waits) == 1


@needs_elsewhere
@pytest.mark.parametrize("representation", LEARNERS)
def test_training_elsewhere_gives_what_the_cpu_gives(clip, tmp_path, representation):
    config = settings(clip, tmp_path, representation)
    here = losses(begun(config, clip, torch.device("cpu"), torch.Generator()))
    with elsewhere.Watched():
        learner = begun(config, clip, elsewhere.DEVICE, Generator(elsewhere.DEVICE))
        there = losses(learner)
    assert are_elsewhere(learner.model)
    assert there == here


@needs_elsewhere
@pytest.mark.parametrize("representation", LEARNERS)
def test_a_training_step_never_waits_for_the_device(clip, tmp_path, representation):
    with elsewhere.Watched() as watched:
        learner = begun(settings(clip, tmp_path, representation), clip, elsewhere.DEVICE, Generator(elsewhere.DEVICE))
        for number in range(0, 3 * len(SHARES), 3):
            share = SHARES[number // 3]
            learner.step(number, share)  # what happens once in a stage may wait
            watched.waits.clear()
            learner.step(number + 1, share)
            assert watched.waits == []
        float(next(iter(learner.step(number + 2, share).values())))
        assert len(watched.waits) == 1  # reading a loss is noted: the watch is not blind


@needs_gpu
@pytest.mark.parametrize("representation", LEARNERS)
def test_a_training_step_never_waits_for_a_gpu(clip, tmp_path, representation):
    device = torch.device("cuda")
    learner = begun(settings(clip, tmp_path, representation), clip, device, torch.Generator(device))
    for number, share in enumerate(SHARES):
        learner.step(2 * number, share)
        torch.cuda.set_sync_debug_mode("error")  # a step that waits raises
        try:
            terms = learner.step(2 * number + 1, share)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(value.is_cuda and value.isfinite() for value in terms.values())


@needs_elsewhere
@pytest.mark.parametrize("representation", LEARNERS)
def test_scripts_work_elsewhere(clip, tmp_path, representation, monkeypatch):
    load = torch.load

    def load_there(path, map_location, **options):
        loaded = load(path, map_location="cpu", **options)
        return pytree.tree_map_only(torch.Tensor, lambda each: each.to(map_location), loaded)

    monkeypatch.setattr(torch, "load", load_there)
    monkeypatch.setattr(torch, "Generator", Generator)
    for module in (training.loop, rendering.trained_run):
        monkeypatch.setattr(module, "pick_device", lambda: elsewhere.DEVICE)
    frame_paint, atlas_paint, atlas = tmp_path / "frame.png", tmp_path / "painted.png", tmp_path / "atlas"
    cv2.imwrite(str(frame_paint), square(64, 96))
    with elsewhere.Watched():
        trainer = start_run(settings(clip, tmp_path / "results", representation))
        trainer.run()
        assert are_elsewhere(trainer.model)
        assert are_elsewhere(open_run(trainer.folder).model)
        run = f"--trained_model_folder={trainer.folder}"
        only_evaluate.main([run, f"--output_folder={tmp_path / 'evaluation'}"])
        export_atlas.main([run, f"--output_folder={atlas}"])
        height, width = cv2.imread(str(atlas / "foreground.png"), cv2.IMREAD_UNCHANGED).shape[:2]
        cv2.imwrite(str(atlas_paint), square(height, width))
        only_edit.main([run, f"--output_folder={tmp_path / 'a'}", "--edit_frame", f"2:{frame_paint}"])
        painted = f"--edit_foreground_path={atlas_paint}"
        only_edit.main(
            [run, f"--output_folder={tmp_path / 'b'}", f"--atlas={atlas}", painted, "--edit_space", "native"]
        )
        export_layers.main([run, f"--output_folder={tmp_path / 'layers'}", f"--atlas={atlas}"])
    assert (tmp_path / "b" / "edited.png").is_file()


def square(height: int, width: int):
    """Opaque white in the middle of a transparent picture."""
    paint = np.zeros((height, width, 4), np.uint8)
    paint[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 255
    return paint
