"""Masks of what a text names: SAM 3 through transformers, with a tiny random model, and a stand-in that sees."""

import json

import numpy as np
import pytest
import torch
from conftest import draw_without_masks

import media
import preprocess_mask_rcnn
import unwrap_video
from command_line import UserError
from masks.provenance import mask_source
from preprocessing import mask_sam3
from preprocessing.errors import NoWeights
from preprocessing.mask_files import list_frames

SIZE, PATCH = 112, 14  # of the pictures that the tiny model sees, and of its patches
GRID = SIZE // PATCH
WIDTH = 128  # of all hidden layers; the package fixes that of the memory to 64


def vision_config():
    """The picture's half of the tiny model."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": SIZE,
    }
    return {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": [[4 * GRID] * 2, [2 * GRID] * 2, [GRID] * 2],
    }


def detector_config():
    """The half of the tiny model that finds what the text names."""
    small = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": WIDTH, "num_layers": 1}
    return {
        "model_type": "sam3",
        "vision_config": vision_config(),
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": 300,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "projection_dim": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "geometry_encoder_config": small,
        "detr_encoder_config": small,
        "detr_decoder_config": {**small, "num_queries": 4},
        "mask_decoder_config": {"hidden_size": WIDTH, "num_attention_heads": 2},
    }


def tracker_config():
    """The half of the tiny model that follows what was found."""
    return {
        "model_type": "sam3_tracker_video",
        "vision_config": vision_config(),
        "prompt_encoder_config": {"hidden_size": WIDTH, "image_size": SIZE, "mask_input_channels": 4},
        "mask_decoder_config": {
            "hidden_size": WIDTH,
            "mlp_dim": WIDTH,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 8,
        },
        "num_maskmem": 2,
        "max_object_pointers_in_encoder": 2,
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": WIDTH,
        "memory_attention_rope_feat_sizes": [GRID, GRID],
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": WIDTH,
    }


def write_tokenizer(folder):
    """Return a tokenizer that knows single letters."""
    import transformers

    letters = [*"abcdefghijklmnopqrstuvwxyz "]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """A folder with a tiny SAM 3 of random weights, as `save_pretrained` writes it; it takes anything for an object."""
    transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    if not hasattr(transformers, "Sam3VideoModel"):
        pytest.skip("this release of transformers has no SAM 3")
    torch.manual_seed(0)
    config = transformers.Sam3VideoConfig(
        detector_config=detector_config(),
        tracker_config=tracker_config(),
        low_res_mask_size=4 * GRID,
        score_threshold_detection=0.0,
        new_det_thresh=0.0,
        hotstart_delay=0,
        recondition_every_nth_frame=2,
    )
    config.image_size = SIZE  # This also tells the tracker.
    folder, size = tmp_path_factory.mktemp("sam3"), {"height": SIZE, "width": SIZE}
    transformers.Sam3VideoModel(config).save_pretrained(folder)
    transformers.Sam3VideoProcessor(
        image_processor=transformers.Sam3ImageProcessor(size=size),
        video_processor=transformers.Sam2VideoVideoProcessor(size=size),
        tokenizer=write_tokenizer(tmp_path_factory.mktemp("tokenizer")),
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def frames(tmp_path):
    """A tiny clip without masks."""
    return draw_without_masks(tmp_path / "data")


@pytest.mark.slow
def test_every_object_that_the_model_finds_gets_a_mask_of_the_frame_s_size(tiny_weights, frames, monkeypatch):
    monkeypatch.setattr(mask_sam3, "INSIDE", -1)  # Where the random model sees something is random.
    found = list(mask_sam3.Sam3Finder(tiny_weights, torch.device("cpu")).find(list_frames(frames), "the ball"))
    assert len(found) == 6
    assert any(found)
    for score, mask in (result for objects in found for result in objects.values()):
        assert 0 <= score <= 1
        assert mask.shape == (32, 48)
        assert mask.dtype == np.uint8


def count_results(session):
    """The most results per object that a session keeps: of tracked frames, of frames with masks, and these masks."""
    outputs = session.output_dict_per_obj.values()
    return (
        max((len(each["non_cond_frame_outputs"]) for each in outputs), default=0),
        max((len(each["cond_frame_outputs"]) for each in outputs), default=0),
        max((len(each) for each in session.mask_inputs_per_obj.values()), default=0),
    )


@pytest.mark.slow
def test_what_the_model_remembers_does_not_grow_with_the_clip(tiny_weights, frames, monkeypatch):
    remembered = []
    forget = mask_sam3.forget_far_frames

    def count_after_forgetting(session, t, config):
        forget(session, t, config)
        remembered.append((len(session.processed_frames), *count_results(session)))

    monkeypatch.setattr(mask_sam3, "forget_far_frames", count_after_forgetting)
    finder = mask_sam3.Sam3Finder(tiny_weights, torch.device("cpu"))
    assert len(list(finder.find(list_frames(frames) * 2, "ball"))) == 12
    pictures, tracked, conditions, inputs = map(max, zip(*remembered, strict=True))
    assert pictures == 0
    assert tracked <= 3
    assert conditions <= 5  # The model reads four; this frame's own is counted before the oldest is removed.
    assert inputs <= 1


class StandIn:
    """Takes the place of SAM 3: sees object 7 in every frame, and object 3, which is surer, in the first two."""

    def __init__(self, weights, device):
        pass

    def find(self, frames, text):
        for t, path in enumerate(frames):
            masks = np.zeros((2, *media.image_size(path)[::-1]), np.uint8)
            masks[0, 4:12, 4:12], masks[1, 20:28, 30:40] = 255, 255
            objects = {7: (0.6, masks[0])} | ({3: (0.9, masks[1])} if t < 2 else {})
            yield {} if text == "unicorn" else objects


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(mask_sam3, "Sam3Finder", StandIn)


def find_masks(frames, *flags):
    preprocess_mask_rcnn.main(["--vid-path", str(frames), *flags])
    return frames.with_name("demo_maskrcnn")


def test_the_object_that_is_in_view_longest_is_taken_and_its_masks_are_kept(frames, stand_in):
    folder = find_masks(frames, "--text", "the ball")
    assert [media.read_mask(path)[8, 8] for path in sorted(folder.iterdir())] == [255] * 6
    assert media.read_mask(folder / "00000.png")[24, 34] == 0
    assert mask_source(folder, folder) == "brought"


def test_an_object_that_leaves_has_empty_masks_there(frames, stand_in):
    folder = find_masks(frames, "--text", "the ball", "--instance", "2")
    assert [media.read_mask(path).max() for path in sorted(folder.iterdir())] == [255, 255, 0, 0, 0, 0]


def test_several_objects_of_one_text_get_folders_of_their_own(frames, stand_in):
    find_masks(frames, "--method", "sam3", "--text", "the balls", "--objects", "2")
    first, second = (media.read_mask(frames.with_name(f"demo_maskrcnn_{n}") / "00001.png") for n in (1, 2))
    assert (first[8, 8], first[24, 34], second[8, 8], second[24, 34]) == (255, 0, 0, 255)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "unicorn"), "--text 'unicorn': 0 objects were found, 1 are needed; name it in other words"),
        (("--text", "ball", "--objects", "3"), "2 objects were found, 3 are needed"),
        (("--text", "ball", "--instance", "3"), "--instance 3: only 2 objects were found"),
        (("--method", "sam3"), "--method sam3 needs to know what the object is; give --text"),
        (("--method", "motion", "--text", "ball"), "--text is for"),
        (("--text", " "), "needs to know what the object is"),
        (("--text", "ball", "--class_name", "dog"), "both say what the object is"),
        (("--text", "ball", "--point", "3,3,0"), "both say which object"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_in_one_line(frames, stand_in, flags, message):
    with pytest.raises(UserError, match=message):
        find_masks(frames, *flags)
    assert not frames.with_name("demo_maskrcnn").exists()
    assert not [path for path in frames.parent.iterdir() if path.name.startswith(".masks_")]


def test_a_text_is_never_replaced_by_a_guess(frames, monkeypatch):
    def refuse(weights, device):
        raise NoWeights("no weights")

    monkeypatch.setattr(mask_sam3, "Sam3Finder", refuse)
    with pytest.raises(NoWeights):
        find_masks(frames, "--text", "ball")


def test_unwrap_video_takes_the_same_text_and_refuses_it_beside_masks(frames):
    with pytest.raises(UserError, match="--text: says where to find an object, but its masks come from elsewhere"):
        unwrap_video.main([str(frames), "--text", "ball", "--masks", str(frames)])
