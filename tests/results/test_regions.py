"""Masks, boxes and points out of maps whose parts are known."""

import warnings

import numpy as np
import pytest
import torch
from helpers import handmade

import legrad
from legrad.inputs.geometry import Placement, Timing
from legrad.results import regions


def lit(*spots, grid=(8, 10), value=1.0):
    """(1, 1, rows, cols): some cells of a dark map; patches are 8 pixels."""
    maps = torch.zeros(1, 1, *grid)
    for row, col in spots:
        maps[0, 0, row, col] = value
    return maps


def explained(relevance, **changes):
    """Over one image whose colours are those of the map: guided maps have exact edges."""
    height, width = (8 * side for side in relevance.shape[-2:])
    bright = relevance.sum(1)[0].repeat_interleave(8, -2).repeat_interleave(8, -1).gt(0).numpy()
    image = np.where(bright[..., None], 255, 0).astype(np.uint8).repeat(3, -1)
    return handmade.explanation(
        targets=relevance.shape[1],
        grid=tuple(relevance.shape[-2:]),
        relevance=relevance,
        **{"images": [image], "placements": [Placement((height, width), (height, width))], **changes},
    )


TWO = lit((1, 1), (1, 2), (2, 1), (2, 2), (5, 6), (5, 7), (6, 6), (6, 7), (6, 8), (5, 8))


def test_a_mask_is_where_the_object_is():
    found = explained(TWO)
    masks = found.masks()
    assert (masks.dtype, masks.shape) == (torch.bool, (1, 1, 64, 80))
    truth = torch.from_numpy(found.images[0][..., 0] > 0)
    assert (masks[0, 0] & truth).sum() / (masks[0, 0] | truth).sum() > 0.95
    assert torch.equal(masks, found.masks("half", "guided"))


@pytest.mark.parametrize("threshold", ["half", "otsu", "mean", 0.0, 0.3, 1, np.float32(0.5)])
@pytest.mark.parametrize("upsampling", ["bilinear", "guided"])
def test_what_exceeds_the_threshold(threshold, upsampling):
    found = handmade.explanation(count=2)
    masks = found.masks(threshold, upsampling)
    values = found.saliency(scale="half" if threshold == "half" else "map", upsampling=upsampling)
    for mask, one in zip(masks.flatten(0, 1), values.flatten(0, 1), strict=True):
        if threshold == "otsu":
            continue
        limit = {"half": 0.5, "mean": float(one.mean())}.get(threshold, threshold)
        assert torch.equal(mask, one > limit)


def test_otsu_against_trying_every_threshold():
    rng = torch.Generator().manual_seed(0)
    values = torch.cat([torch.rand(500, generator=rng) * 0.3, 0.6 + torch.rand(80, generator=rng) * 0.4])
    inside = [
        sum(float(part.var(correction=0)) * len(part) for part in (values[values <= t], values[values > t]))
        for t in np.arange(0.3, 0.61, 0.01)
    ]
    assert min(inside) + 1e-3 > sum(
        float(part.var(correction=0)) * len(part)
        for part in (values[values <= regions.otsu(values)], values[values > regions.otsu(values)])
    )
    assert 0.25 < regions.otsu(values) <= 0.61
    assert regions.otsu(torch.zeros(10)) == 0


def test_boxes_of_two_parts():
    found = explained(TWO)
    ((boxes,),) = found.boxes()
    assert len(boxes) == 2
    assert boxes.units == ("pixels", "pixels")
    edges = sorted(boxes.xyxy.tolist())
    for box, want in zip(edges, [[8, 8, 24, 24], [48, 40, 72, 56]], strict=True):
        assert np.abs(np.array(box) - want).max() <= 2
    assert torch.equal(boxes.areas, boxes.parts.sum((1, 2)))
    assert torch.equal(boxes.parts.any(0), found.masks()[0, 0])
    values = found.saliency(upsampling="guided", scale="half")[0, 0]
    for (left, top, right, bottom), part, score in zip(
        boxes.xyxy.int().tolist(), boxes.parts, boxes.scores.tolist(), strict=True
    ):
        rows, cols = part.any(1).nonzero()[:, 0], part.any(0).nonzero()[:, 0]
        assert [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1] == [left, top, right, bottom]
        assert score == pytest.approx(float(values[part].mean()), rel=1e-5)
    assert boxes.scores.tolist() == sorted(boxes.scores.tolist(), reverse=True)
    assert "Boxes([" in repr(boxes)


def test_small_parts_are_left_out():
    found = explained(TWO)
    ((all_boxes,),) = found.boxes(min_area=0)
    share = float(all_boxes.areas.min()) / (64 * 80)
    ((larger,),) = found.boxes(min_area=share + 1e-6)
    ((kept,),) = found.boxes(min_area=share)
    assert (len(larger), len(kept)) == (1, 2)
    ((none,),) = found.boxes(min_area=1)
    assert (len(none), none.xyxy.shape, none.parts.shape) == (0, (0, 4), (0, 64, 80))


def test_parts_that_touch_at_a_corner_are_one():
    corner = explained(lit((2, 2), (3, 3)))
    ((boxes,),) = corner.boxes(threshold=0.4, upsampling="bilinear")
    assert len(boxes) == 1


def test_points_are_maxima_and_background():
    found = explained(TWO)
    ((points,),) = found.points(k=2, negative=3)
    assert points.labels.tolist() == [1, 1, 0, 0, 0]
    mask, values = found.masks()[0, 0], found.saliency(upsampling="guided", scale="half")[0, 0]
    rows, cols = (points.xy[:, axis].floor().long() for axis in (1, 0))
    assert mask[rows, cols].tolist() == [True, True, False, False, False]
    assert float(points.scores[0]) == float(values.max()) == float(values[rows[0], cols[0]])
    assert float((points.xy[0] - points.xy[1]).norm()) > 0.25 * float(mask.sum()) ** 0.5
    # negatives are far from the mask, and apart from each other
    inside = mask.nonzero().flip(1) + 0.5
    for index in (2, 3, 4):
        assert (inside - points.xy[index]).norm(dim=1).min() > 6
        others = [other for other in (2, 3, 4) if other != index]
        assert min(float((points.xy[index] - points.xy[other]).norm()) for other in others) > 6
    ((one,),) = found.points()
    assert torch.equal(one.xy, points.xy[:1])
    ((none,),) = found.points(k=0)
    assert len(none) == 0
    ((many,),) = found.points(k=500)
    assert 2 < len(many) < 500


def test_everything_is_the_same_the_second_time():
    found = handmade.explanation(count=2)
    assert torch.equal(found.masks(), found.masks())
    for first, second in zip(found.boxes(), found.boxes(), strict=True):
        assert all(torch.equal(a.xyxy, b.xyxy) for a, b in zip(first, second, strict=True))
    for first, second in zip(found.points(3, 3), found.points(3, 3), strict=True):
        assert all(torch.equal(a.xy, b.xy) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("threshold", ["half", "otsu", "mean", 0.0])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_flat_map_has_nothing_and_says_so(threshold, value):
    relevance = torch.rand(1, 2, 3, 4)
    relevance[0, 1] = value
    found = handmade.explanation(relevance=relevance)
    for call in (found.masks, found.boxes, lambda threshold: found.points(1, 1, threshold)):
        with pytest.warns(legrad.FlatMapWarning, match="1 maps are flat: nothing is found on them, .*'target 1'"):
            result = call(threshold)
        if isinstance(result, torch.Tensor):
            assert result[0, 0].any()
            assert not result[0, 1].any()
        else:
            assert len(result[0][0]) > 0
            assert len(result[0][1]) == 0


def test_a_target_that_an_image_lacks_has_nothing():
    valid = torch.tensor([[True, False]])
    relevance = torch.rand(1, 2, 3, 4) * valid[..., None, None]
    found = handmade.explanation(relevance=relevance, valid=valid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not found.masks()[0, 1].any()
        assert len(found.boxes()[0][1]) == len(found.points()[0][1]) == 0
        assert found.masks()[0, 0].any()


def test_only_what_the_model_saw():
    frame = Placement((24, 60), (24, 24), (1.0, 1.0), (0.0, -18.0))
    found = handmade.explanation(grid=(3, 3), placements=[frame])
    masks, seen = found.masks(0.0, "bilinear"), found.seen
    assert masks.any()
    assert not masks[~seen[:, None].expand_as(masks)].any()
    for points in found.points(k=2, negative=4)[0]:
        assert all(seen[0, int(y), int(x)] for x, y in points.xy.tolist())


def test_images_of_different_sizes():
    placements = [Placement(size, (24, 32), (24 / size[0], 32 / size[1])) for size in ((24, 32), (60, 50))]
    found = handmade.explanation(count=2, placements=placements)
    assert [mask.shape for mask in found.masks()] == [(2, 24, 32), (2, 60, 50)]
    assert found.masks(size=(12, 12)).shape == (2, 2, 12, 12)


def test_videos_have_them_frame_by_frame():
    maps = torch.stack([lit((1, 1)), lit((5, 7), value=3.0)], 2)  # (1, 1, frames, rows, cols)
    video = np.zeros((2, 64, 80, 3), np.uint8)
    video[0, 8:16, 8:16] = video[1, 40:48, 56:64] = 255
    axes = ("frames", "rows", "cols")
    place = [Placement((64, 80), (64, 80))]
    found = handmade.explanation(
        targets=1, grid=(8, 10), relevance=maps, layer_relevance=None, images=[video], axes=axes, placements=place
    )
    masks = found.masks(0.2)
    assert masks.shape == (1, 1, 2, 64, 80)
    ((boxes,),) = found.boxes(0.2)
    assert sorted(boxes.frames.tolist()) == [0, 1]
    late = boxes.xyxy[boxes.frames == 1][0]
    assert (late - torch.tensor([56.0, 40, 64, 48])).abs().max() <= 3
    ((points,),) = found.points()
    assert points.frames.tolist() == [1]
    assert torch.allclose(points.xy[0], torch.tensor([60.0, 44], dtype=torch.float64), atol=5)


def test_sounds_have_seconds_and_hertz():
    maps = lit((2, 3), (2, 4), (3, 3), (3, 4))
    sounds = {
        "axes": ("frequency", "time"),
        "timings": [Timing(duration=4.0, start=1.0)],
        "frequencies": [tuple(100.0 * row for row in range(64))],
    }
    found = explained(maps, **sounds)
    ((boxes,),) = found.boxes()
    assert boxes.units == ("seconds", "Hz")
    begin, low, end, high = boxes.xyxy[0].tolist()
    # columns 24 to 40 of 80 in 4 seconds from 1 on, rows 16 to 32 of 100 Hz each
    assert (begin, end) == (pytest.approx(2.2, abs=0.1), pytest.approx(3.0, abs=0.1))
    assert (low, high) == (pytest.approx(1550, abs=200), pytest.approx(3150, abs=200))
    ((points,),) = found.points()
    assert begin < points.xy[0, 0] < end
    assert low < points.xy[0, 1] < high
    ((bare,),) = explained(maps, axes=sounds["axes"]).boxes()
    assert bare.units == ("frames", "bins")


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan"), "halves", None, True, [0.5]])
def test_thresholds_out_of_range(threshold):
    found = handmade.explanation()
    for call in (found.masks, found.boxes, lambda threshold: found.points(1, 0, threshold)):
        with pytest.raises(legrad.InputError, match=r"threshold is one of 'half', .*, or a number in \[0, 1\]"):
            call(threshold)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda e: e.points(k=-1), "k"),
        (lambda e: e.points(k=1.5), "k"),
        (lambda e: e.points(negative=-1), "negative"),
        (lambda e: e.boxes(min_area=2), "min_area"),
        (lambda e: e.masks(upsampling="cubic"), "upsampling"),
        (lambda e: e.masks(size=0), "size"),
    ],
)
def test_other_arguments_out_of_range(call, name):
    with pytest.raises(legrad.InputError, match=f"^{name} is "):
        call(handmade.explanation())


def test_scipy_comes_when_it_is_needed(loaded_by):
    assert "scipy" not in loaded_by("from legrad.results import explanation")


def test_masks_on_scenes_cover_the_objects():
    """On two held-out scenes the refined map's masks have half of the object, and not much else."""
    overlaps = []
    for scene in legrad.embedded.scenes(2, seed=23, objects=(2, 3)):
        found = legrad.load("embedded").explain(
            scene.image, [f"a photo of a {name}" for name in scene.names], method="legrad-centred"
        )
        for mask, truth in zip(found.masks()[0].numpy(), scene.masks, strict=True):
            overlaps.append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(overlaps) > 0.6
