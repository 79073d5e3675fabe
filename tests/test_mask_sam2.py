"""Masks of what somebody clicks on: SAM 2 through transformers, with a tiny random model, and a stand-in that sees."""

import numpy as np
import pytest
import torch
from conftest import draw_without_masks

import media
import preprocess_mask_rcnn
import unwrap_video
from command_line import UserError
from masks.provenance import mask_source
from preprocessing import mask_sam2
from preprocessing.errors import NoWeights
from preprocessing.mask_files import list_frames
from preprocessing.mask_request import MaskRequest, Prompt, parse_box, parse_negative, parse_point

SIZE = 64  # of the pictures that the tiny model sees


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """A folder with a tiny SAM 2 of random weights, as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIZE, SIZE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    config = transformers.Sam2VideoConfig(
        vision_config={
            "backbone_config": backbone,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": SIZE, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 8},
        image_size=SIZE,
        num_maskmem=2,
        max_object_pointers_in_encoder=2,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=16,
    )
    folder, size = tmp_path_factory.mktemp("sam2"), {"height": SIZE, "width": SIZE}
    transformers.Sam2VideoModel(config).save_pretrained(folder)
    transformers.Sam2VideoProcessor(
        image_processor=transformers.Sam2ImageProcessor(size=size),
        video_processor=transformers.Sam2VideoVideoProcessor(size=size),
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def tracker(tiny_weights, monkeypatch):
    """The tiny model; what it takes for an object is random, so nothing counts as no object."""
    monkeypatch.setattr(mask_sam2, "INSIDE", -1)
    return mask_sam2.Sam2Tracker(tiny_weights, torch.device("cpu"))


class StandIn:
    """Takes the place of SAM 2 and sees a square of 9 pixels around each click, in every frame."""

    def __init__(self, weights, device):
        pass

    def track(self, frames, prompts):
        ((x, y),) = prompts[0].corners
        for t, path in enumerate(frames):
            mask = np.zeros(media.image_size(path)[::-1], np.uint8)
            mask[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5] = 255
            yield t, mask


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(mask_sam2, "Sam2Tracker", StandIn)


@pytest.fixture
def frames(tmp_path):
    """A tiny clip without masks."""
    return draw_without_masks(tmp_path / "data")


@pytest.mark.slow
def test_every_frame_gets_a_mask_of_its_size_forward_then_backward(tracker, frames):
    paths = list_frames(frames)
    result = list(tracker.track(paths, [Prompt(((20, 16),), 2), Prompt(((2, 2),), 2, is_positive=False)]))
    assert [t for t, _ in result] == [2, 3, 4, 5, 1, 0]
    assert all(mask.shape == (32, 48) and mask.dtype == np.uint8 for _, mask in result)


@pytest.mark.slow
def test_a_box_and_prompts_in_several_frames_are_taken(tracker, frames):
    prompts = [Prompt(((10, 5), (30, 25)), 0), Prompt(((20, 16),), 0), Prompt(((20, 16),), 4)]
    assert len(list(tracker.track(list_frames(frames), prompts))) == 6


@pytest.mark.slow
def test_what_the_model_remembers_does_not_grow_with_the_clip(tracker, frames, monkeypatch):
    remembered = []
    forget = mask_sam2.forget_far_frames

    def count_after_forgetting(session, t, config):
        forget(session, t, config)
        (outputs,) = session.output_dict_per_obj.values()
        remembered.append((len(session.processed_frames), len(outputs["non_cond_frame_outputs"])))

    monkeypatch.setattr(mask_sam2, "forget_far_frames", count_after_forgetting)
    paths = list_frames(frames) * 5
    assert len(list(tracker.track(paths, [Prompt(((20, 16),), 0)]))) == 30
    assert max(pictures for pictures, _ in remembered) == 0
    assert max(results for _, results in remembered) <= 3


@pytest.mark.slow
def test_a_click_on_nothing_is_refused(tracker, frames, monkeypatch):
    monkeypatch.setattr(mask_sam2, "INSIDE", 255)  # nothing is that sure
    with pytest.raises(UserError, match="--point 20,16,1: SAM 2 sees no object there; click on the middle"):
        list(tracker.track(list_frames(frames), [Prompt(((20, 16),), 1)]))


def test_a_clicked_object_gets_masks_that_are_kept(frames, stand_in):
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--point", "20,16,2"])
    folder = frames.with_name("demo_maskrcnn")
    mask = media.read_mask(folder / "00003.png")
    assert mask[16, 20] == 255
    assert (mask > 0).sum() == 81
    assert len(list(folder.iterdir())) == 6
    assert mask_source(folder, folder) == "brought"


def test_several_points_are_several_objects_with_folders_of_their_own(frames, stand_in):
    clicks = ["--point", "10,10,0", "--point", "30,20,1"]
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--method", "sam2", "--objects", "2", *clicks])
    together, first, second = (
        media.read_mask(frames.with_name(f"demo_maskrcnn{suffix}") / "00000.png") for suffix in ("", "_1", "_2")
    )
    assert (first[10, 10], first[20, 30], second[10, 10], second[20, 30]) == (255, 0, 0, 255)
    np.testing.assert_array_equal(together, np.maximum(first, second))


def test_prompts_belong_to_the_objects_that_they_name_else_to_the_first():
    plain, second = Prompt(((1, 1),), 0), Prompt(((2, 2),), 0, object=2)
    assert MaskRequest(prompts=(plain, second)).prompts_by_object() == {1: [plain], 2: [second]}
    more = (plain, Prompt(((3, 3),), 1), Prompt(((4, 4),), 2, is_positive=False))
    assert MaskRequest(prompts=more).prompts_by_object() == {1: list(more)}


def test_flags_are_parsed_into_prompts():
    assert parse_point("3,4.5,6") == Prompt(((3, 4.5),), 6)
    assert parse_point("3,4,6,2") == Prompt(((3, 4),), 6, 2)
    assert parse_negative("3,4,6") == Prompt(((3, 4),), 6, is_positive=False)
    assert parse_box("1,2,3,4,5") == Prompt(((1, 2), (3, 4)), 5)
    assert [str(each) for each in (parse_point("3,4.5,6,2"), parse_negative("3,4,6"), parse_box("1,2,3,4,5"))] == [
        "--point 3,4.5,6,2",
        "--negative 3,4,6",
        "--box 1,2,3,4,5",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--point", "60,3,0"], "--point 60,3,0: outside the frames of 48 x 32 pixels"),
        (["--point", "6,3,9"], "--point 6,3,9: the clip has the frames 0 to 5"),
        (["--box", "9,3,9,20,0"], "--box 9,3,9,20,0: the box has no area"),
        (["--negative", "6,3,0"], "object 1 has no --point and no --box, only --negative"),
        (["--point", "6,3,0", "--objects", "2"], "object 2 has no --point and no --box"),
    ],
)
def test_prompts_that_make_no_sense_are_refused_before_anything_is_written(frames, stand_in, flags, message):
    with pytest.raises(UserError, match=message):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), *flags])
    assert not frames.with_name("demo_maskrcnn").exists()


@pytest.mark.parametrize("text", ["3,4", "a,b,c", "1,2,3,4,5,6,7", "1,2,3.5", "1,2,3,0"])
def test_a_point_that_is_no_point_is_refused_in_one_line(frames, text, capsys):
    with pytest.raises(SystemExit) as stop:
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--point", text])
    assert stop.value.code == 2
    assert "expected X,Y,FRAME such as 320,200,0" in capsys.readouterr().err


def test_without_a_click_sam2_has_nothing_to_look_for(frames):
    for script, arguments in (
        (preprocess_mask_rcnn, ["--vid-path", str(frames)]),
        (unwrap_video, [str(frames)]),
    ):
        with pytest.raises(UserError, match="--method sam2 needs to know where the object is"):
            script.main([*arguments, "--method", "sam2"])


def test_without_weights_auto_says_so_and_takes_what_a_detector_finds_at_the_point(frames, monkeypatch, capsys):
    def refuse(weights, device):
        raise NoWeights("no weights at hand")

    asked = []
    monkeypatch.setattr(mask_sam2, "Sam2Tracker", refuse)
    monkeypatch.setattr("preprocessing.masks.make_detector", lambda request: None)
    mask = np.full((32, 48), 255, np.uint8)

    def track(paths, missing, detector, request):
        asked.append(request.prompts)
        return iter([mask] * len(missing))

    monkeypatch.setattr("preprocessing.masks.track_objects", track)
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--point", "20,16,2"])
    assert "falling back to --method maskrcnn: no weights at hand" in capsys.readouterr().err
    assert asked == [(Prompt(((20, 16),), 2),)]
    with pytest.raises(NoWeights):
        preprocess_mask_rcnn.main(
            ["--vid-path", str(frames.rename(frames.with_name("other"))), "--method", "sam2", "--point", "20,16,2"]
        )


def test_a_detector_takes_one_point_only(frames):
    with pytest.raises(UserError, match="a detector takes one --point, of one object"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--method", "maskrcnn", "--box", "1,1,20,20,0"])


@pytest.mark.slow
def test_a_folder_that_holds_something_else_is_refused(tmp_path, tiny_weights):
    with pytest.raises(UserError, match=r"no folder with config\.json and weights of SAM 2"):
        mask_sam2.Sam2Tracker(tmp_path, torch.device("cpu"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"holds a model of type .* SAM 2 has type 'sam2_video'"):
        mask_sam2.Sam2Tracker(tmp_path, torch.device("cpu"))


def test_a_click_is_never_ignored(frames, monkeypatch, capsys):
    def refuse(*_):
        raise NoWeights("no weights at hand")

    monkeypatch.setattr(mask_sam2, "Sam2Tracker", refuse)
    monkeypatch.setattr("preprocessing.masks.make_detector", refuse)
    with pytest.raises(NoWeights):  # motion would find another object
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--point", "20,16,2"])
    folder = media.make_folder(frames.with_name("demo_maskrcnn"))
    for path in list_frames(frames):
        media.write_png(folder / f"{path.stem}.png", np.zeros((32, 48), np.uint8))
    with pytest.raises(UserError, match="holds masks already; move it away to find those of --point 20,16,2"):
        preprocess_mask_rcnn.main(["--vid-path", str(frames), "--point", "20,16,2"])
    assert mask_source(folder, folder) == "unknown"


def test_masks_that_a_detector_found_at_a_click_are_still_a_detectors(frames, monkeypatch):
    monkeypatch.setattr("preprocessing.masks.make_detector", lambda request: None)
    mask = np.full((32, 48), 255, np.uint8)
    monkeypatch.setattr("preprocessing.masks.track_objects", lambda paths, missing, *_: iter([mask] * len(missing)))
    preprocess_mask_rcnn.main(["--vid-path", str(frames), "--method", "maskrcnn", "--point", "20,16,2"])
    folder = frames.with_name("demo_maskrcnn")
    assert mask_source(folder, folder) == "found"
