"""The scripts that write flow and masks: what they write, what they keep, what they refuse."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, last_line, run_script
from PIL import Image

import preprocess_mask_rcnn
import preprocess_optical_flow
from alignment.dis_flow import DisFlow
from command_line import UserError
from masks.provenance import are_found, mask_source
from preprocessing import flow, flow_raft, mask_detection, mask_rcnn, masks, weights
from preprocessing.errors import NoWeights
from preprocessing.mask_rcnn import check_class_name, class_names, to_detections
from preprocessing.mask_tracking import Detection
from scenes.catalogue import demo

CPU = torch.device("cpu")


@pytest.fixture
def frames(tmp_path):
    """Three frames without flow or masks."""
    scene, folder = demo(width=96, height=64, frames=3), tmp_path / "data" / "cat"
    folder.mkdir(parents=True)
    for t in range(3):
        Image.fromarray(scene.frame(t).rgb).save(folder / f"{t}.png")
    return folder


@pytest.fixture
def offline(monkeypatch):
    """No weights in the cache, no network."""

    def refuse(url, **_):
        raise weights.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def test_dis_flow_follows_the_exact_motion(tmp_path):
    scene = demo(width=160, height=90, frames=12)
    truth, visible = scene.flow(3, 4)
    flow, back_flow = DisFlow()(scene.frame(3).rgb, scene.frame(4).rgb)
    assert np.median(np.abs(flow + back_flow)) < 0.5 * np.median(np.abs(flow))
    error = np.linalg.norm(flow - truth, axis=-1)[visible]
    assert np.median(error) < 0.3
    assert np.median(np.linalg.norm(truth, axis=-1)) > 1.5


def test_dis_accepts_frames_smaller_than_a_patch():
    assert [flow.shape for flow in DisFlow()(*np.zeros((2, 9, 13, 3), np.uint8))] == [(9, 13, 2)] * 2


@pytest.mark.slow
def test_flow_is_written_for_every_pair_both_ways_and_not_twice(frames):
    arguments = ("preprocess_optical_flow.py", "--vid-path", frames, "--method", "dis", "--max_long_edge", 48)
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    folder = frames.with_name("cat_flow")
    names = ["0.png_1.png.npz", "1.png_0.png.npz", "1.png_2.png.npz", "2.png_1.png.npz"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with np.load(folder / names[0]) as file:
        assert (file["flow"].shape, file["flow"].dtype) == ((32, 48, 2), np.float16)
    (folder / names[1]).write_bytes(b"cut")
    whole = (folder / names[0]).stat().st_mtime_ns
    again = run_script(*arguments)
    assert "computing missing flow files: 1 of 4, at 48 x 32" in again.stdout
    assert (folder / names[0]).stat().st_mtime_ns == whole
    assert "all 4 flow files exist already" in run_script(*arguments).stdout
    larger = run_script(*arguments[:-1], 96)
    assert "4 flow files of another size (48 x 32) are kept; delete them to compute them anew" in larger.stderr
    assert (folder / names[0]).stat().st_mtime_ns == whole


def test_auto_falls_back_to_dis_in_one_line(offline, capsys):
    assert flow.load_raft("auto", None) is None
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("falling back to --method dis: no weights at hand")


def test_raft_without_weights_says_where_to_get_them(offline):
    with pytest.raises(UserError, match=r"get https://\S+ elsewhere and give the file: --flow_weights FILE"):
        flow.load_raft("raft", None)


@pytest.mark.slow
def test_raft_loads_a_local_file_and_gives_flow_of_the_frames_size(tmp_path):
    torch.manual_seed(0)
    torch.save(weights.make_torchvision_network("raft_large").state_dict(), tmp_path / "raft.pth")
    method = flow_raft.load_torchvision_raft(tmp_path / "raft.pth", CPU)
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    following = np.roll(image, 3, axis=1)
    forward, backward = method(image, following)
    assert forward.shape == backward.shape == (50, 70, 2)
    assert np.isfinite(forward).all()
    np.testing.assert_allclose(method(following, image)[0], backward, atol=1e-2)  # a batch holds both directions


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such weights file"), (b"hello", "not a weights file, or cut short"), ({"a": 1}, "of another network")],
)
def test_wrong_weights_are_named(tmp_path, content, message):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        weights.load_network(lambda: torch.nn.Linear(2, 2), path, "the right place", "--mask_weights")


def test_weights_saved_from_several_gpus_load_too(tmp_path):
    source = torch.nn.Linear(2, 2)
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    target = weights.load_network(lambda: torch.nn.Linear(2, 2), tmp_path / "w.pth", "", "")
    torch.testing.assert_close(target.weight, source.weight)


def test_the_published_raft_tells_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(flow_raft, "THIRDPARTY", tmp_path)
    with pytest.raises(UserError, match="git submodule update --init thirdparty/RAFT"):
        flow_raft.load_thirdparty_raft(None, CPU)
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "raft.py").write_text("")
    with pytest.raises(UserError, match=r"raft-things\.pth: no such file; run download_models\.sh"):
        flow_raft.load_thirdparty_raft(None, CPU)


def test_the_published_raft_is_called_with_its_own_interface(monkeypatch, tmp_path):
    class Raft(torch.nn.Module):
        def __init__(self, options):
            super().__init__()
            assert options.small is False
            self.shift = torch.nn.Parameter(torch.zeros(1))

        def forward(self, a, b, iters, test_mode):
            assert test_mode
            moved = self.shift.expand(len(a), 2, *a.shape[2:])
            return moved[..., ::8, ::8], moved

    module = ModuleType("raft")
    module.RAFT = Raft
    monkeypatch.setitem(sys.modules, "raft", module)
    monkeypatch.setattr(flow_raft, "THIRDPARTY", tmp_path)
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "raft.py").write_text("")
    torch.save({"module.shift": torch.tensor([3.0])}, tmp_path / "w.pth")
    flow, _ = flow_raft.load_thirdparty_raft(tmp_path / "w.pth", CPU)(*np.zeros((2, 20, 30, 3), np.uint8))
    assert flow.shape == (20, 30, 2)
    assert (flow == 3).all()


def test_a_detectors_output_becomes_detections_of_the_class_the_surest_first():
    output = {
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.4]),
        "labels": torch.tensor([1, 2, 2, 3]),
        "masks": torch.zeros(4, 1, 3, 3),
    }
    for index in range(4):
        output["masks"][index, 0, 0, index % 3] = 0.6
    detections = to_detections(output, label=2)
    assert [(detection.label, round(detection.score, 1)) for detection in detections] == [(2, 0.8), (2, 0.7)]
    assert detections[0].mask[0].tolist() == [0, 153, 0]  # soft, as the detector gives it
    assert [detection.label for detection in to_detections(output, label=None)] == [1, 2, 2]
    assert to_detections(output, label=3) == []  # its score is below the least one


def test_an_unknown_class_lists_the_known_ones(frames):
    with pytest.raises(UserError, match=r"--class_name 'dragon' is unknown.*bird.*person"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--class_name", "dragon"])
    assert not frames.with_name("cat_maskrcnn").exists()
    assert len(class_names()) == 80


def test_addresses_and_classes_are_those_of_torchvision():
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights
    from torchvision.models.optical_flow import Raft_Large_Weights

    published = MaskRCNN_ResNet50_FPN_V2_Weights.DEFAULT
    assert published.url == mask_rcnn.WEIGHTS_URL
    assert Raft_Large_Weights.DEFAULT.url == flow_raft.WEIGHTS_URL
    unused = ("__background__", "N/A")
    assert [mask_rcnn.UNUSED if name in unused else name for name in published.meta["categories"]] == mask_rcnn.CLASSES


def test_without_weights_torchvision_is_not_imported():
    """It takes a second and 160 MB."""
    code = """
import sys
from urllib.error import URLError
import torch
from preprocessing.errors import NoWeights
from preprocessing.mask_detection import make_detector
from preprocessing.mask_request import MaskRequest

def refuse(url, **_):
    raise URLError("no route to host")

torch.hub.load_state_dict_from_url = refuse
try:
    make_detector(MaskRequest(class_name="bird"))
except NoWeights:
    print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_a_torchvision_that_cannot_be_imported_is_told_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)  # an import of it raises ImportError
    with pytest.raises(NoWeights, match=r"torchvision cannot be imported \(.*\); install the release that belongs to"):
        weights.make_torchvision_network("raft_large")


def test_a_misspelt_class_gets_a_guess_before_the_list():
    with pytest.raises(
        UserError, match=r"'brid' is unknown to Mask R-CNN; did you mean 'bird'\? Otherwise use .*zebra"
    ):
        check_class_name("brid", class_names())
    with pytest.raises(UserError, match=r"'ship' is unknown.*, boat, "):
        check_class_name("ship", class_names())


def test_masks_without_weights_say_where_to_get_them(frames, offline):
    with pytest.raises(UserError, match="give the file: --mask_weights FILE"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--class_name", "cat", "--method", "maskrcnn"])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (masks.MaskRequest(), True),
        (masks.MaskRequest(class_name="cat"), True),
        (masks.MaskRequest("maskrcnn"), False),
        (masks.MaskRequest(objects=2), False),
        (masks.MaskRequest(weights=Path("w.pth")), False),
        (masks.MaskRequest(text="the cat"), False),
    ],
)
def test_masks_are_found_by_motion_only_where_nothing_says_which_object_is_meant(request_, expected):
    assert masks.may_find_by_motion(request_) == expected


def test_weights_that_were_downloaded_before_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = "https://example.org/models/raft.pth"
    assert not weights.is_downloaded(url)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "raft.pth").touch()
    assert weights.is_downloaded(url)


def test_masks_without_weights_fall_back_to_motion_in_one_line(frames, offline, monkeypatch, capsys):
    empty = np.zeros((24, 32), np.uint8)
    monkeypatch.setattr(masks, "find_moving_object", lambda frames, missing, request: iter([empty] * len(missing)))
    preprocess_mask_rcnn.main(["--vid-path", str(frames)])
    lines = [line for line in capsys.readouterr().err.splitlines() if "falling back to --method motion" in line]
    assert len(lines) == 1
    assert len(list(frames.with_name("cat_maskrcnn").iterdir())) == 3


def masks_of_detections(track, count, motion):
    """Return what `fill_gaps` returns, without filling any frame."""
    return [track.detections[t].mask if t in track.detections else None for t in range(count)], []


def test_masks_are_written_for_every_frame_and_own_ones_are_kept(frames, monkeypatch, capsys):
    import preprocessing.mask_rcnn as module

    class Detector:
        batch_size = 2

        def __init__(self, *_):
            self.calls = 0

        def __call__(self, images):
            self.calls += 1
            mask = np.full(images[0].shape[:2], 255, np.uint8)
            return [[Detection(1, 0.9, mask)] if self.calls == 1 else [] for _ in images]

        def label_name(self, label):
            return "cat"

    monkeypatch.setattr(module, "MaskRcnn", Detector)
    monkeypatch.setattr(mask_detection, "fill_gaps", masks_of_detections)
    folder = frames.with_name("cat_maskrcnn")
    folder.mkdir()
    Image.new("L", (5, 5), 77).save(folder / "1.png")
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--class_name", "cat"])
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    with Image.open(folder / "1.png") as own:
        assert own.size == (5, 5)
    output = capsys.readouterr()
    assert "no object found in 1 of 2 frames, masks are empty there: 2.png" in output.err
    assert "object 1: cat, found in 2 frames (0 to 1), mean score 0.90" in output.out
    preprocess_mask_rcnn.main(["--vid-path", str(frames)])
    assert "all 3 masks exist already and are used as they are" in capsys.readouterr().out
    damaged = folder / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"2\.png: damaged or incomplete image"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames)])


@pytest.mark.slow
def test_mask_rcnn_loads_a_local_file_and_runs(tmp_path, frames):
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    from preprocessing.mask_rcnn import MaskRcnn

    torch.manual_seed(0)
    torch.save(maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict(), tmp_path / "rcnn.pth")
    detector = MaskRcnn("cat", tmp_path / "rcnn.pth", CPU)
    (detections,) = detector([np.zeros((40, 60, 3), np.uint8)])
    assert all(detection.mask.shape == (40, 60) for detection in detections)


def test_detectron2_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="--method detectron2: it is not installed"):
        masks.make_detector(masks.MaskRequest("detectron2"))


def test_detectron2_gets_bgr_and_gives_detections_of_the_class(monkeypatch):
    """A stand-in has the interface of detectron2's documentation; the package itself is not needed."""

    class Instances:
        pred_classes = torch.tensor([0, 1, 1])
        scores = torch.tensor([0.9, 0.6, 0.8])
        pred_masks = torch.zeros(3, 4, 5, dtype=torch.bool)

        def to(self, device):
            assert device == "cpu"
            return self

    class Predictor:
        def __init__(self, settings):
            assert settings.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.5
            assert settings.MODEL.WEIGHTS == "https://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"

        def __call__(self, image):
            assert image[0, 0].tolist() == [3, 2, 1]
            return {"instances": Instances()}

    def settings():
        heads = SimpleNamespace(SCORE_THRESH_TEST=0.0)
        model = SimpleNamespace(ROI_HEADS=heads, WEIGHTS="", DEVICE="")
        return SimpleNamespace(MODEL=model, DATASETS=SimpleNamespace(TRAIN=("coco",)), merge_from_file=lambda _: None)

    catalog = SimpleNamespace(get=lambda _: SimpleNamespace(thing_classes=["person", "bird"]))
    zoo = SimpleNamespace(get_config_file=str, get_checkpoint_url=lambda name: f"https://{name}")
    parts = {
        "detectron2": {"model_zoo": zoo},
        "detectron2.config": {"get_cfg": settings},
        "detectron2.data": {"MetadataCatalog": catalog},
        "detectron2.engine": {"DefaultPredictor": Predictor},
    }
    for name, values in parts.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    detector = masks.make_detector(masks.MaskRequest("detectron2", class_name="bird"))
    image = np.full((4, 5, 3), (1, 2, 3), np.uint8)
    (detections,) = detector([image])
    assert [(detection.label, round(detection.score, 1)) for detection in detections] == [(1, 0.8), (1, 0.6)]
    assert detector.label_name(1) == "bird"
    with pytest.raises(UserError, match="'dragon' is unknown to Mask R-CNN; use 'anything' or one of: bird, person"):
        masks.make_detector(masks.MaskRequest("detectron2", class_name="dragon"))


def test_several_objects_get_folders_of_their_own_and_one_together(frames, monkeypatch):
    left, right = np.zeros((64, 96), np.uint8), np.zeros((64, 96), np.uint8)
    left[20:40, 10:30], right[20:40, 60:80] = 255, 255

    class Detector:
        batch_size = 1

        def __call__(self, images):
            return [[Detection(1, 0.9, left), Detection(1, 0.8, right)] for _ in images]

        def label_name(self, label):
            return "cat"

    monkeypatch.setattr(masks, "make_detector", lambda request: Detector())
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--objects", "2"])
    with pytest.raises(UserError, match="holds masks found with objects 2, but the request is for instance 2"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--instance", "2"])
    folders = [frames.with_name(f"cat_maskrcnn{suffix}") for suffix in ("", "_1", "_2")]
    assert all(are_found(folders[0], folder) for folder in folders)
    np.testing.assert_array_equal(read_mask_of_frame_1(frames, ""), np.maximum(left, right))
    np.testing.assert_array_equal(read_mask_of_frame_1(frames, "_1"), left)
    np.testing.assert_array_equal(read_mask_of_frame_1(frames, "_2"), right)
    for path in frames.with_name("cat_maskrcnn").iterdir():
        path.unlink()
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--method", "maskrcnn", "--point", "70,30,1"])
    np.testing.assert_array_equal(read_mask_of_frame_1(frames, ""), right)
    own = np.zeros((64, 96), np.uint8)
    Image.fromarray(own).save(frames.with_name("cat_maskrcnn_2") / "1.png")
    shutil.rmtree(frames.with_name("cat_maskrcnn"))
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--objects", "2"])
    np.testing.assert_array_equal(read_mask_of_frame_1(frames, "_2"), own)  # an existing mask is kept
    assert [are_found(folders[0], folder) for folder in folders] == [False, True, False]
    shutil.rmtree(frames.with_name("cat_maskrcnn"))
    with pytest.raises(UserError, match="--instance 3: only 2 objects were found"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--instance", "3"])


@pytest.fixture
def motion(monkeypatch):
    """Every pixel counts as moving."""
    full = np.full((64, 96), 255, np.uint8)
    monkeypatch.setattr(masks, "find_moving_object", lambda frames, missing, request: iter([full] * len(missing)))


def find_by_motion(frames):
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--method", "motion"])


def test_masks_count_as_found_while_nobody_touches_them(frames, motion):
    folder = frames.with_name("cat_maskrcnn")
    assert not are_found(folder, folder)
    find_by_motion(frames)
    assert are_found(folder, folder)
    shutil.copy(frames / "2.png", frames / "3.png")
    find_by_motion(frames)  # finds the mask of the new frame
    assert are_found(folder, folder)
    Image.new("L", (96, 64)).save(folder / "1.png")
    assert not are_found(folder, folder)
    (folder / "2.png").unlink()
    find_by_motion(frames)
    assert not are_found(folder, folder)  # one of them is still the user's own


def test_masks_made_elsewhere_do_not_count_as_found(frames, motion, tmp_path):
    folder = frames.with_name("cat_maskrcnn")
    find_by_motion(frames)
    own = folder.rename(tmp_path / "own")
    folder.with_name("cat_maskrcnn.json").unlink()
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--method", "import", "--masks", str(own)])
    assert mask_source(folder, folder) == "brought"
    Image.new("L", (96, 64)).save(folder / "1.png")
    assert mask_source(folder, folder) == "brought"  # it is still the user's work


def test_a_file_in_the_place_of_the_note_on_masks_is_kept(frames, motion, capsys):
    folder = frames.with_name("cat_maskrcnn")
    note = folder.with_name("cat_maskrcnn.json")
    note.write_text('[{"segmentation": []}]')
    find_by_motion(frames)
    assert note.read_text() == '[{"segmentation": []}]'
    assert "is not a note on masks" in capsys.readouterr().err
    assert not are_found(folder, folder)


def test_a_detector_that_finds_nothing_is_an_error_and_auto_takes_motion(frames, monkeypatch, capsys):
    class Detector:
        batch_size = 1

        def __call__(self, images):
            return [[] for _ in images]

    monkeypatch.setattr(masks, "make_detector", lambda request: Detector())
    with pytest.raises(UserError, match="no cat was found in any frame; use another --class_name, or --method motion"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--class_name", "cat", "--method", "maskrcnn"])
    assert not frames.with_name("cat_maskrcnn").exists()
    full = np.full((64, 96), 255, np.uint8)
    monkeypatch.setattr(masks, "find_moving_object", lambda frames, missing, request: iter([full] * len(missing)))
    preprocess_mask_rcnn.main(["--vid-path", str(frames)])
    assert "falling back to --method motion: no known object was found" in capsys.readouterr().err


def read_mask_of_frame_1(frames, suffix):
    return np.asarray(Image.open(frames.with_name(f"cat_maskrcnn{suffix}") / "1.png"))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["preprocess_optical_flow.py", "preprocess_mask_rcnn.py"])
def test_a_missing_or_empty_folder_is_one_line_and_exit_code_2(script, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "holds")):
        done = run_script(script, "--vid-path", folder)
        assert done.returncode == 2
        assert message in last_line(done.stderr)
        assert "Traceback" not in done.stderr


def test_a_file_in_the_place_of_the_flow_folder_is_named(frames):
    frames.with_name("cat_flow").write_text("a file")
    with pytest.raises(UserError, match="cat_flow is a file, a folder of that name is to be written; move it away"):
        preprocess_optical_flow.main(["--vid-path", str(frames), "--method", "dis"])
