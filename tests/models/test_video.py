"""Video models: maps against the slow twin, tubes where they belong, clips of every kind in, film strips out."""

import io
import json
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers import generic_twin, limits
from helpers.handmade import explanation
from helpers.tiny import left_as_found
from helpers.twin import distance
from helpers.zoo import media as zoo_media
from PIL import Image

import legrad
from legrad.core import hooks
from legrad.errors import TruthCheckError
from legrad.inputs import originals, prepare, videos
from legrad.inputs.geometry import PatchGrid, Placement, Timing, along_time
from legrad.inputs.transforms import follow

NORMS = ("vjepa2.encoder.layernorm",)  # left out by the published read-out of the pooler
NAMES = [
    name
    for name in zoo_media.names()
    if not name.startswith(("ast", "waveform")) and not zoo_media.not_applicable(name)
]


def batch_of(anatomy, count=2, dtype=torch.float32, seed=0):
    return torch.randn(count, *anatomy.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def second(feature):
    return feature[:, 1]


def frames_of(count=6, height=20, width=30, seed=0):
    """(count, height, width, 3), every frame unlike the others."""
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def videomae():
    model = zoo_media.build("videomae")
    processor = transformers.VideoMAEImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 16, "width": 24})
    return legrad.wrap(model, transform=processor)


# -- maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", NAMES)
def test_maps_equal_the_twin(name, readout):
    model = zoo_media.build(name).double()
    explainer = legrad.wrap(model)
    batch = batch_of(explainer.anatomy, dtype=torch.float64)
    with left_as_found(model):
        explanation = explainer.explain(batch, second, readout=readout, keep_layers=True)
    pooled = explainer.anatomy.route == "pooler"
    expected = generic_twin.layer_maps(
        model, lambda m: legrad.wrap(m).anatomy, batch, second, readout, NORMS if pooled else ()
    )
    assert explanation.axes == ("frames", "rows", "cols")
    assert explanation.relevance.shape[2:] == explainer.anatomy.grid
    assert distance(explanation.layer_relevance[:, 0], expected) < limits.FLOAT64


@pytest.mark.parametrize("name", ["videomae", "vivit", "vjepa2", "timesformer"])
def test_company_does_not_matter(name):
    explainer = legrad.wrap(zoo_media.build(name).double())
    batch = batch_of(explainer.anatomy, dtype=torch.float64)
    both = explainer.explain(batch, [0, legrad.PREDICTED])
    for row in range(2):
        alone = explainer.explain(batch[row : row + 1], [0, legrad.PREDICTED])
        assert distance(alone.relevance[0], both.relevance[row]) < limits.FLOAT64
        assert limits.close(alone.scores[0], both.scores[row])


def test_space_only_is_refused():
    with pytest.raises(legrad.UnsupportedModelError, match="answers for every frame alone"):
        legrad.wrap(zoo_media.build("timesformer-space-only"))


# -- places -------------------------------------------------------------------------------------------------------


def token_of(anatomy, t, r, c):
    """Index of a cell's token; TimeSformer counts frames last."""
    frames, rows, cols = anatomy.grid
    place = (r * cols + c) * frames + t if "Timesformer" in type(anatomy.tower).__name__ else (t * rows + r) * cols + c
    return anatomy.num_prefix_tokens + place


@pytest.mark.parametrize("name", ["videomae", "vivit", "vjepa2", "timesformer", "timesformer-joint"])
def test_the_pixels_of_a_tube_are_its_token(name):
    """What a changed tube changes on the way into the first block is the token that its cell's relevance is of."""
    anatomy = legrad.wrap(zoo_media.build(name)).anatomy
    batch = batch_of(anatomy, 1)
    frames, rows, cols = anatomy.grid
    tube, (height, width) = anatomy.shape[0] // frames, anatomy.patch_size

    def block_input(x):
        with torch.no_grad():
            return hooks.block_input(lambda: anatomy.run(x), anatomy.blocks[0])[0]

    assert anatomy.num_prefix_keys == anatomy.num_prefix_tokens
    before = block_input(batch)
    for t, r, c in [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 2), (frames - 1, rows - 1, cols - 1)]:
        changed = batch.clone()
        changed[:, t * tube : (t + 1) * tube, :, r * height : (r + 1) * height, c * width : (c + 1) * width] += 1
        moved = (block_input(changed) - before).abs().amax(-1).nonzero().flatten().tolist()
        assert moved == [token_of(anatomy, t, r, c)]


@pytest.mark.parametrize(("name", "tap"), [("timesformer", 0), ("timesformer", 1), ("timesformer-joint", 0)])
def test_timesformer_lays_keys_where_their_tokens_are(name, tap):
    """Spelled out: the key of the token that holds the number 100 t + 10 r + c lands in cell (t, r, c)."""
    anatomy = legrad.wrap(zoo_media.build(name)).anatomy
    frames, rows, cols = anatomy.grid
    tokens = [(r, c, t) for r in range(rows) for c in range(cols) for t in range(frames)]
    numbers = torch.tensor([100.0 * t + 10 * r + c for r, c, t in tokens])
    if name == "timesformer-joint":
        keys = torch.cat([torch.tensor([-1.0]), numbers])[None]
    elif tap == 0:  # one attention over time for every place
        keys = numbers.reshape(rows * cols, frames)
    else:  # one over space for every frame, the class token in front
        space = [[-1.0, *(100.0 * t + 10 * r + c for r in range(rows) for c in range(cols))] for t in range(frames)]
        keys = torch.tensor(space)
    two = torch.cat([keys, keys + 1000])
    laid = anatomy.keys_to_grid(two, tap)
    assert laid.shape == (2, frames, rows, cols)
    for t, r, c in [(0, 0, 0), (1, 2, 0), (3, 0, 2), (2, 1, 1)]:
        assert laid[:, t, r, c].tolist() == [100 * t + 10 * r + c, 1000 + 100 * t + 10 * r + c]


def test_divided_attention_is_the_mean_of_time_and_space():
    from dataclasses import replace

    model = zoo_media.build("timesformer").double()
    anatomy = legrad.wrap(model).anatomy
    batch = batch_of(anatomy, 1, torch.float64)
    both, time, space = (
        legrad.wrap(model, anatomy=replace(anatomy, explained_attentions=taps)).explain(batch, 2).relevance
        for taps in ((0, 1), (0,), (1,))
    )
    assert limits.close(both, (time + space) / 2, maps=True)
    assert distance(time, space) > 0.1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("videomae", {"num_prefix_tokens": 1, "num_prefix_keys": 1}),
        ("vivit", {"num_prefix_keys": 0}),
        ("vjepa2", {"explained_attentions": (0,)}),
        ("timesformer", {"keys_to_grid": lambda keys, tap: keys[:, -36:].reshape(-1, 4, 3, 3)[:1]}),
        ("timesformer-joint", {"keys_to_grid": lambda keys, tap: keys[:, 1:].reshape(-1, 4, 3, 3)}),
    ],
)
def test_a_broken_anatomy_is_noticed(name, wrong):
    """The comparison with the truth would fail: by another map, or by an error."""
    from dataclasses import replace

    model = zoo_media.build(name).double()
    anatomy = legrad.wrap(model).anatomy
    batch = batch_of(anatomy, 1, torch.float64)
    right = legrad.wrap(model).explain(batch, second).relevance
    try:
        relevance = legrad.wrap(model, anatomy=replace(anatomy, **wrong)).explain(batch, second).relevance
    except (TruthCheckError, RuntimeError):
        return
    assert distance(relevance, right) > limits.DIFFERENT


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("vjepa2", {"attentions": 1, "explained_attentions": (0,)}),
        ("timesformer", {"attentions": 1, "explained_attentions": (0,)}),
        ("timesformer", {"attention": "fused"}),
        ("videomae", {"attention": "softmax"}),
    ],
)
def test_other_attentions_than_declared_are_an_error(name, wrong):
    from dataclasses import replace

    model = zoo_media.build(name)
    anatomy = replace(legrad.wrap(model).anatomy, **wrong)
    with pytest.raises(TruthCheckError, match="expected"):
        legrad.wrap(model, anatomy=anatomy).explain(batch_of(anatomy, 1), second)


def test_input_sizes():
    explainer = legrad.wrap(zoo_media.build("timesformer"))
    tall = torch.randn(1, 4, 3, 32, 24)
    assert explainer.explain(tall, 0).relevance.shape[2:] == (4, 4, 3)
    for refused in ((24, 32), (32, 32)):
        with pytest.raises(legrad.InputError, match="only inputs of 3 patches in width"):
            explainer.explain(torch.randn(1, 4, 3, *refused), 0)
    joint = legrad.wrap(zoo_media.build("timesformer-joint"))
    assert joint.explain(torch.randn(1, 4, 3, 32, 32), 0).relevance.shape[2:] == (4, 4, 4)
    with pytest.raises(legrad.InputError, match="cannot place a grid"):
        joint.explain(torch.randn(1, 4, 3, 8, 72), 0)
    for name in ("videomae", "vivit", "vjepa2"):
        with pytest.raises(legrad.InputError, match="only, got 48 x 48"):
            legrad.wrap(zoo_media.build(name)).explain(torch.randn(1, 4, 3, 48, 48), 0)


# -- clips in -----------------------------------------------------------------------------------------------------


def test_frames_stand_at_the_middle_of_equal_parts():
    assert videos.sampled([1] * 4, 4) == [0, 1, 2, 3]
    assert videos.sampled([1] * 9, 3) == [1, 4, 7]
    assert videos.sampled([1] * 2, 4) == [0, 0, 1, 1]
    assert videos.sampled([0, 0, 0, 0], 2) == [1, 3]
    # a frame that stands for a long time is seen more often
    assert videos.sampled([12, 8, 60], 4) == [0, 2, 2, 2]


def test_the_same_clip_in_many_forms(videomae, tmp_path):
    frames = frames_of(4)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(tmp_path / "clip.webp", save_all=True, append_images=pictures[1:], lossless=True, duration=100)
    pictures[0].save(tmp_path / "clip.apng", format="PNG", save_all=True, append_images=pictures[1:], duration=100)
    with Image.open(tmp_path / "clip.webp") as animated:
        sources = [frames, list(frames), pictures, tmp_path / "clip.webp", str(tmp_path / "clip.apng"), animated]
        found = [videomae.explain(source, 1) for source in sources]
        together = videomae.explain(sources, 1)
    for index, one in enumerate(found):
        assert np.array_equal(one.images[0], frames)
        assert distance(one.relevance, found[0].relevance) < limits.FLOAT32
        assert distance(together.relevance[index], found[0].relevance[0]) < limits.FLOAT32
    assert [one.names[0] for one in found[:4]] == ["video 0", "video 0", "video 0", str(tmp_path / "clip.webp")]
    stacked = videomae.explain(np.stack([frames, frames[::-1]]), 1)
    assert distance(stacked.relevance[0], found[0].relevance[0]) < limits.FLOAT32


def test_a_gif_is_sampled_in_time(videomae, tmp_path):
    shades = [Image.new("RGB", (30, 20), (v, v, v)) for v in (0, 100, 200)]
    shades[0].save(tmp_path / "clip.gif", save_all=True, append_images=shades[1:], duration=[120, 80, 600])
    explanation = videomae.explain(tmp_path / "clip.gif", 1)
    assert explanation.images[0].mean((1, 2, 3)).tolist() == [0, 200, 200, 200]
    assert explanation.names == [str(tmp_path / "clip.gif")]


def test_processors_are_followed(videomae):
    """The tensor that the model gets is the processor's own, the frame says where it lies."""
    processor = transformers.VideoMAEImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 16, "width": 24})
    frames = frames_of(4, 40, 64)
    explanation = videomae.explain(frames, 1)
    own = processor(list(frames), return_tensors="pt")
    assert limits.close(explanation.relevance, videomae.explain(own["pixel_values"], 1).relevance, maps=True)
    assert limits.close(explanation.relevance, videomae.explain(own, 1).relevance, maps=True)
    # 40 x 64 -> 28 x 44 -> the middle 16 x 24: six rows and ten columns are cut away
    assert explanation.placements[0].original == (40, 64)
    assert explanation.placements[0].offset == (-6, -10)


PROCESSORS = [
    "VideoMAEImageProcessor",
    "VideoMAEVideoProcessor",
    "VivitImageProcessor",
    "VivitVideoProcessor",
    "TimesformerVideoProcessor",
    "VJEPA2VideoProcessor",
]


@pytest.mark.parametrize("name", PROCESSORS)
def test_frames_of_processors(name):
    """A spot in the image is found where the frame says, for all sizes and fits."""
    from legrad.models.hf.video import transform

    processor = getattr(transformers, name)(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    chosen = transform(SimpleNamespace(image_size=(32, 32)), processor)
    mean, std = chosen(None, "model").normalisation
    for size, fit in ((None, "model"), (None, "squash"), (None, "pad"), ((48, 48), "model"), ((32, 64), "squash")):
        for height, width in ((90, 121), (121, 90)):
            there = chosen(size, fit)
            y, x = np.mgrid[:height, :width]
            top, left = 0.55 * height, 0.48 * width
            spot = np.exp(-(((y + 0.5 - top) / 4) ** 2 + ((x + 0.5 - left) / 4) ** 2) / 2)
            picture = Image.fromarray((spot * 255).astype(np.uint8)).convert("RGB")
            frame = follow(there, (height, width))
            values = (there(picture) * std[:, None, None] + mean[:, None, None])[0].clamp(min=0.05) - 0.05
            assert values.shape == frame.input == (size or (32, 32))
            assert 0.5 < values.max() < 1.01
            rows, cols = torch.meshgrid(*(torch.arange(side) + 0.5 for side in values.shape), indexing="ij")
            found = [float((values * axis).sum() / values.sum()) for axis in (rows, cols)]
            expected = [s * p + o for s, p, o in zip(frame.scale, (top, left), frame.offset, strict=True)]
            assert found == pytest.approx(expected, abs=0.3)


def test_a_plain_image_transform_works_frame_by_frame():
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    steps = Compose([Resize(20), CenterCrop((16, 24)), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
    explanation = legrad.wrap(zoo_media.build("vivit"), transform=steps).explain(frames_of(), 1)
    assert explanation.images[0].shape == (4, 20, 30, 3)
    assert explanation.saliency().shape == (1, 1, 4, 20, 30)


def test_a_folder_by_name(tmp_path):
    zoo_media.build("videomae").save_pretrained(tmp_path)
    transformers.VideoMAEVideoProcessor(
        size={"height": 16, "width": 24}, do_center_crop=False, crop_size={"height": 16, "width": 24}
    ).save_pretrained(tmp_path)
    explainer = legrad.load(f"hf:{tmp_path}")
    assert explainer.explain(frames_of(), legrad.PREDICTED).relevance.shape == (1, 1, 2, 2, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (frames_of()[0], "a video is a path"),
        (frames_of().astype(np.float32), "float32"),
        (Image.new("RGB", (8, 8)), "is a still image"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "of one size"),
        ("absent.gif", "no such video: absent.gif"),
        ([], "no images"),
        ([[]], "a video is a path"),
        (7, "got int"),
        ([torch.zeros(4, 3, 8, 8)], "not inside a list"),
        (torch.zeros(1, 5, 3, 16, 24), r"\(batch, frames, 3, height, width\).*4 x 3 x 16 x 24 each"),
        (torch.zeros(1, 3, 16, 24), "float"),
    ],
)
def test_what_is_no_video(videomae, source, message):
    with pytest.raises(legrad.InputError, match=message):
        videomae.explain(source, 1)


def test_video_files_need_pyav(videomae, tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(legrad.InputError, match=r"install PyAV: pip install 'legrad\[video\]'"):
        videomae.explain(tmp_path / "clip.mp4", 1)


def test_video_files(videomae, tmp_path):
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 32, 24
        for shade in range(0, 240, 20):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 24), (shade, shade, shade)))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    explanation = videomae.explain(tmp_path / "clip.mp4", 1)
    assert np.abs(explanation.images[0].mean((1, 2, 3)) - [20, 80, 140, 200]).max() < 12
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(legrad.InputError, match="as a video"):
        videomae.explain(tmp_path / "broken.mp4", 1)


# -- film strips out ----------------------------------------------------------------------------------------------


def clip(frames=6, tubes=3, targets=1, **changes):
    """A handmade explanation: frames of 20 x 30 whose middle 16 x 24 pixels are tubes x 2 x 3 cells."""
    relevance = torch.zeros(1, targets, tubes, 2, 3)
    relevance[0, :, 2, 1, 0] = 1
    return explanation(
        targets=targets,
        relevance=relevance,
        layer_relevance=relevance[:, :, None].repeat(1, 1, 2, 1, 1, 1),
        placements=[Placement((20, 30), (16, 24), offset=(-2, -3))],
        patch_grids=[PatchGrid((2, 3), (8, 8), (8, 8))],
        images=[frames_of(frames)],
        axes=("frames", "rows", "cols"),
        **changes,
    )


def test_saliency_lands_in_its_tube():
    saliency = clip().saliency()[0, 0]
    assert saliency.shape == (6, 20, 30)
    at = np.unravel_index(int(saliency.argmax()), saliency.shape)
    assert at[0] in (4, 5)  # the third tube of two frames
    # the lower left cell: rows 10 to 18 and columns 3 to 11 of the original
    assert 10 <= at[1] < 18
    assert 3 <= at[2] < 11
    assert saliency[0].max() == 0
    assert saliency[:, :2].max() == saliency[:, :, :3].max() == 0


def test_time_is_linear_between_tubes():
    maps = torch.tensor([0.0, 1.0, 3.0])[:, None, None].expand(3, 2, 2)
    assert along_time(maps, 6)[:, 0, 0].tolist() == [0, 0.25, 0.75, 1.5, 2.5, 3]


def test_overlay_and_animation():
    found = clip()
    frames = found.animation()
    assert [frame.size for frame in frames] == [(30, 20)] * 6
    strongest = int(found.saliency()[0, 0].flatten(1).amax(1).argmax())
    assert np.array_equal(found.overlay(), frames[strongest])
    assert np.array_equal(found.overlay(frame=1), frames[1])
    assert np.array_equal(found.overlay(frame=-1), frames[5])
    # one scale for the whole clip: the first frame has no colour, so only the image and the map's zero show
    assert np.asarray(found.animation(alpha=0.65)[0]).max() <= 0.35 * 255 + 3 + 110
    seen = found.seen[0].numpy()
    assert np.array_equal(np.asarray(frames[0])[seen], found.images[0][0][seen])
    with pytest.raises(legrad.InputError, match="no frame 6: image 0 has 6 frames"):
        found.overlay(frame=6)
    with pytest.raises(legrad.InputError, match="no frame 0: image 0 has no frames"):
        explanation().overlay(frame=0)
    with pytest.raises(legrad.InputError, match="only videos have an animation"):
        explanation().animation()


def test_film_strips():
    found = clip(frames=20, targets=2)
    figure = found.figure()
    strips = [axis for axis in figure.axes if axis.images]
    assert len(strips) == 3 * 8
    assert [axis.get_xlabel() for axis in strips[-8:]] == [f"frame {i}" for i in (1, 3, 6, 8, 11, 13, 16, 18)]
    assert strips[8].get_title(loc="left").startswith("target 0")
    assert len([axis for axis in found.layer_figure().axes if axis.images]) == 3 * 8
    assert found._repr_png_().startswith(b"\x89PNG")


def test_saving_writes_an_animation(tmp_path):
    files = clip(targets=2).save(tmp_path, per_layer=True)
    gifs = [path for path in files if path.suffix == ".gif"]
    assert [path.name for path in gifs] == ["image-0--target-0.gif", "image-0--target-1.gif"]
    with Image.open(gifs[0]) as animation:
        assert (animation.n_frames, animation.size) == (6, (30, 20))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["axes"] == ["targets", "frames", "rows", "cols"]
    assert manifest["images"][0]["targets"][0]["animation"] == "image-0--target-0.gif"


def test_command_line(tmp_path, capsys, monkeypatch):
    from legrad.cli import main

    model = tmp_path / "model"
    zoo_media.build("videomae").save_pretrained(model)
    transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 16, "width": 24}
    ).save_pretrained(model)
    pictures = [Image.fromarray(frame) for frame in frames_of()]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a.gif", "b.gif"):
        (clips / name).write_bytes(buffer.getvalue())
    (clips / "notes.txt").write_text("no clip")
    (clips / "broken.gif").write_bytes(buffer.getvalue()[:60])
    out = tmp_path / "out"
    arguments = ["legrad", "explain", str(clips), "--predicted", "--model", f"hf:{model}", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 1
    assert "broken.gif" in capsys.readouterr().err
    assert {path.suffix for path in out.iterdir()} == {".png", ".gif", ".npz", ".json", ".csv"}
    assert len(list(out.glob("*.gif"))) == 2


def test_a_broken_animation_is_named(videomae, tmp_path):
    first, *others = (Image.linear_gradient("L").rotate(30 * turn).resize((80, 60)) for turn in range(12))
    whole, broken = tmp_path / "whole.gif", tmp_path / "broken.gif"
    first.save(whole, save_all=True, append_images=others)
    data = whole.read_bytes()
    told = []
    for length in range(900, len(data), 150):
        broken.write_bytes(data[:length])
        try:
            videomae.explain(str(broken), 0)
        except legrad.InputError as error:
            told.append(str(error))
    assert told
    assert all("broken.gif" in message and "the PIL image" not in message for message in told)


def test_a_sound_is_no_video(videomae, tmp_path):
    pytest.importorskip("av")
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes(bytes(32000))
    with pytest.raises(legrad.InputError, match=r"a\.wav holds no images, only sound"):
        videomae.explain(str(tmp_path / "a.wav"), 0)


def test_the_doctor_says_why_positions_are_not_checked(videomae):
    report = legrad.doctor.examine(videomae)
    assert report.healthy
    values = {finding.what: finding for finding in report.findings}
    assert values["position check"].value.startswith("not run: it knows images only")
    assert values["position check"].good is None
    assert values["grid"].value.endswith("(frames, channels, height, width)")


def test_frames_are_named_by_their_place_in_the_video(videomae, tmp_path):
    count = videomae.anatomy.shape[0]
    first, *others = (Image.fromarray(frame) for frame in frames_of(2 * count, 20, 30))
    path = tmp_path / "a.gif"
    first.save(path, save_all=True, append_images=others, duration=500)
    explanation = videomae.explain(str(path), [0, legrad.PREDICTED])
    frames = [2 * i + 1 for i in range(count)]
    assert explanation.timing() == Timing(tuple(frames), tuple(i / 2 for i in frames), float(count))
    labels = [axis.get_xlabel() for axis in explanation.figure().axes if axis.get_xlabel()]
    assert labels[0] == "frame 1, 0.50 s"
    explanation.save(tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["images"]
    assert (entry["frames"], entry["seconds"], entry["duration"]) == (frames, [i / 2 for i in frames], count)
    assert [record["predicted"] for record in entry["targets"]] == [False, True]
    with Image.open(tmp_path / "out" / entry["targets"][0]["animation"]) as animation:
        assert animation.info["duration"] == 1000  # as long as the original
    # a list of frames has no seconds
    listed = videomae.explain(frames_of(2 * count), 0)
    assert listed.timing() == Timing(tuple(frames))
    assert [axis.get_xlabel() for axis in listed.figure().axes][-2] == f"frame {frames[-1]}"


def test_seconds_of_a_video_file(videomae, tmp_path):
    av = pytest.importorskip("av")
    count = videomae.anatomy.shape[0]
    with av.open(str(tmp_path / "a.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in frames_of(2 * count, 32, 32):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())
    timing = videomae.explain(str(tmp_path / "a.mp4"), 0).timing()
    assert timing.frames == tuple(range(1, 2 * count, 2))
    assert timing.seconds == pytest.approx([i / 10 for i in timing.frames])
    assert timing.duration == pytest.approx(2 * count / 10)


def save_animation(path, seed=0):
    first, *others = [Image.fromarray(frame) for frame in frames_of(seed=seed)]
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


def test_files_are_read_when_they_are_needed(videomae, tmp_path):
    paths = [save_animation(tmp_path / f"{index}.webp", index) for index in range(3)]
    queue = prepare.sources(paths, videomae.anatomy, videomae.adapter.transform)
    paths[2].unlink()
    windows = queue.windows(1)
    assert next(windows)[0].name == str(paths[0])
    with pytest.raises(legrad.InputError, match=r"2\.webp"):
        list(windows)


def test_originals_beyond_the_memory_are_read_again(videomae, tmp_path):
    paths = [save_animation(tmp_path / f"{index}.webp", index) for index in range(3)]
    whole, small = videomae.explain(paths, second), videomae.explain(paths, second, memory=4)
    assert isinstance(small.images, originals.Originals)
    assert limits.close(small.relevance, whole.relevance, maps=True)
    for index in range(3):
        assert np.array_equal(small.images[index], whole.images[index])
    paths[1].unlink()
    with pytest.raises(legrad.InputError, match=r"1\.webp is gone since it was explained"):
        small.overlay(1)
