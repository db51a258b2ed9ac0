"""Which files decide about an item: all of them are there, and nothing that decides is left out."""

from helpers.dataset_files import coded, grey, picture, table

from legrad import datasets
from legrad.datasets.embedded import EmbeddedScenes
from legrad.datasets.spoken import SpokenScenes


def names(data, index=0):
    paths = data.files(index)
    assert all(path.is_file() for path in paths)
    return sorted(path.name for path in paths)


def test_masks_belong_to_their_images(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / "b.jpg")
    for kind in ("cow", "pig"):
        grey(tmp_path / "masks" / kind / "a.png", [[0, 1]])
    data = datasets.MaskFolder(tmp_path)
    assert names(data) == ["a.jpg", "a.png", "a.png"]
    assert names(data, 1) == ["b.jpg"]


def test_coded_masks(tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("n01440764")
    picture(tmp_path / "validation" / "n01440764" / "a.JPEG")
    coded(tmp_path / "validation-segmentation" / "n01440764" / "a.png", [[0]], [[0]])
    assert names(datasets.ImageNetS(tmp_path, classes)) == ["a.JPEG", "a.png"]


def test_tables(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    path = table(tmp_path / "t.csv", [["ImageId", "X", "Y", "Label", "EstimatedYesNo", "TextLabel"]])
    table(path, [["ImageId", "X", "Y", "Label", "EstimatedYesNo", "TextLabel"], ["a", 0.5, 0.5, "/m/1", "yes", "Cow"]])
    assert names(datasets.OpenImagesPoints(path, tmp_path / "images")) == ["a.jpg", "t.csv"]


def test_scenes_are_drawn():
    assert EmbeddedScenes(1).files(0) == []
    assert {path.suffix for path in SpokenScenes(1).files(0)} == {".wav"}


def test_prompts(tmp_path):
    picture(tmp_path / "frames/train/a.jpg", (2, 1))
    coded(tmp_path / "annotations/train/a_seg.png", [[130, 0]], [[37, 0]])
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/clip.wav").write_bytes(b"RIFF")
    rows = [["image_location", "ade_class_id", "speech_prompt_file"], ["train/a.jpg", "3365", "data/clip.wav"]]
    table(tmp_path / "prompted_segmentation.csv", rows)
    expected = ["a.jpg", "a_seg.png", "clip.wav", "prompted_segmentation.csv"]
    assert names(datasets.ADE20KPrompted(tmp_path)) == expected


def test_folders_of_classes(tmp_path):
    (tmp_path / "sounds/dog").mkdir(parents=True)
    (tmp_path / "sounds/dog/a.wav").write_bytes(b"RIFF")
    assert names(datasets.SoundFolder(tmp_path / "sounds")) == ["a.wav"]
    picture(tmp_path / "images/dog/a.png")
    assert names(datasets.ImageFolder(tmp_path / "images")) == ["a.png"]
    rows = [["class", "image", "x", "y", "label"], ["dog", "dog/a.png", 3, 2, "yes"]]
    points = datasets.PointsCsv(table(tmp_path / "points.csv", rows), tmp_path / "images")
    assert names(points) == ["a.png", "points.csv"]
