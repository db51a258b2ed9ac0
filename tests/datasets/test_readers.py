"""The readers of points, labelled images, sound prompts and class names, on tiny files in the published formats."""

import sys
import tarfile

import numpy as np
import pytest
import torch
from helpers.dataset_files import coded, picture, table
from scipy.io import savemat

from legrad.datasets import ADE20KPrompted, ImageFolder, ImageNetSegmentation, OpenImagesPoints, PointsCsv, names
from legrad.datasets.files import inside
from legrad.errors import InputError
from legrad.metrics import localisation

# columns in another order than published: they are found by name
HEADER = ["X", "Y", "ImageId", "Label", "EstimatedYesNo", "Source", "YesVotes", "NoVotes", "UnsureVotes", "TextLabel"]


def _point(image, x, y, code, answer, text=""):
    return [x, y, image, code, answer, "ih", 1, 0, 0, text]


@pytest.fixture
def open_images(tmp_path):
    picture(tmp_path / "images/0001.jpg", (8, 4))
    picture(tmp_path / "images/0002.jpg", (10, 10))
    rows = [
        HEADER,
        _point("0001", 0.5, 0.25, "/m/0bt9lr", "yes"),
        _point("0001", 0.0, 1.0, "/m/0bt9lr", "no"),
        _point("0001", 0.1, 0.1, "/m/0bt9lr", "unsure"),
        _point("0001", 0.75, 0.5, "/m/01yrx", "yes"),  # a class without negatives
        _point("0001", 0.75, 0.5, "/m/015p6", "no"),  # not there: not asked
        _point("0002", 1.0, 0.0, "/m/new", "yes", "Spoon"),
        _point("0002", 0.5, 0.5, "/m/nameless", "yes"),
        _point("0002", 1.5, 0.5, "/m/01yrx", "yes"),
        _point("0002", 0.5, 0.5, "/m/01yrx", "perhaps"),
        _point("0003", 0.5, 0.5, "/m/01yrx", "yes"),
        _point("../secret", 0.5, 0.5, "/m/01yrx", "yes"),
    ]
    classes = [["LabelName", "DisplayName"], ["/m/0bt9lr", "Dog"], ["/m/01yrx", "Cat"], ["/m/015p6", "Bird"]]
    return table(tmp_path / "points.csv", rows), tmp_path / "images", table(tmp_path / "classes.csv", classes)


def test_open_images_points(open_images):
    data = OpenImagesPoints(*open_images)
    assert data.keys() == ["0001.jpg", "0002.jpg"]
    points = data[0].points
    assert set(points) == {"Dog", "Cat"}
    np.testing.assert_array_equal(points["Dog"][0], [[4, 1]])
    np.testing.assert_array_equal(points["Dog"][1], [[0, 4]])
    np.testing.assert_array_equal(points["Cat"][0], [[6, 2]])
    assert points["Cat"][1].shape == (0, 2)
    np.testing.assert_array_equal(data[1].points["Spoon"][0], [[10, 0]])
    facts = data.facts
    assert (facts["classes"], facts["pairs"], facts["pairs_without_negatives"]) == (3, 3, 2)
    assert (facts["positive_points"], facts["negative_points"], facts["unsure"]) == (3, 1, 1)
    problems = " ".join(facts["problems"])
    for part in ("/m/nameless", "'perhaps'", "1.5", "0003.jpg", "../secret.jpg"):
        assert part in problems
    assert len(facts["problems"]) == 5
    with_absent = OpenImagesPoints(*open_images, absent=True)[0].points["Bird"]
    assert with_absent[0].shape == (0, 2)
    np.testing.assert_array_equal(with_absent[1], [[6, 2]])


def test_class_descriptions_without_header(open_images, tmp_path):
    points, images, _ = open_images
    classes = table(tmp_path / "bare.csv", [["/m/0bt9lr", "Dog"], ["/m/01yrx", "Cat"]])
    assert "Dog" in OpenImagesPoints(points, images, classes)[0].points
    with pytest.raises(InputError, match="must hold two columns"):
        OpenImagesPoints(points, images, table(tmp_path / "bad.csv", [["/m/0bt9lr", "Dog"], ["Cat"]]))


def test_classes_that_share_a_name_are_told(open_images, tmp_path):
    points, images, _ = open_images
    classes = table(tmp_path / "same.csv", [["/m/0bt9lr", "Bat"], ["/m/01yrx", "Bat"]])
    data = OpenImagesPoints(points, images, classes)
    assert "Bat is /m/0bt9lr and /m/01yrx" in " ".join(data.facts["problems"])
    assert len(data[0].points["Bat"][0]) == 2


def test_tables_that_are_not_open_images(open_images, tmp_path):
    points, images, _ = open_images
    with pytest.raises(InputError, match="no column 'EstimatedYesNo'"):
        OpenImagesPoints(table(tmp_path / "t.csv", [["ImageId", "X", "Y", "Label"]]), images)
    with pytest.raises(InputError, match="holds no usable points"):
        OpenImagesPoints(table(tmp_path / "t.csv", [HEADER]), images)
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a CSV table in UTF-8"):
        OpenImagesPoints(tmp_path / "t.csv", images)
    with pytest.raises(InputError, match="no folder"):
        OpenImagesPoints(points, tmp_path / "nowhere")


def test_points_of_ones_own(tmp_path):
    picture(tmp_path / "images/sub/a.png", (8, 4))
    rows = [["class", "image", "x", "y", "label"]]
    rows += [["dog", "sub/a.png", 3, 2, "yes"], ["dog", "sub/a.png", 7.5, 0, 0], ["dog", "sub/a.png", "x", 0, "no"]]
    path = table(tmp_path / "points.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets begin a table in UTF-8
    data = PointsCsv(path, tmp_path / "images")
    yes, no = data[0].points["dog"]
    np.testing.assert_array_equal(yes, [[3, 2]])
    np.testing.assert_array_equal(no, [[7.5, 0]])
    assert "('x', '0') in line 4" in data.facts["problems"][0]
    renamed = table(tmp_path / "own.csv", [["file", "what", "u", "v", "there"], ["sub/a.png", "dog", 0.5, 0.5, 1]])
    own = PointsCsv(renamed, tmp_path / "images", "relative", columns=("file", "what", "u", "v", "there"))
    np.testing.assert_array_equal(own[0].points["dog"][0], [[4, 2]])
    for values in ((0.5, 0.5), (1, 0.25)):
        shares = table(tmp_path / "shares.csv", [rows[0], ["dog", "sub/a.png", *values, "yes"]])
        with pytest.raises(InputError, match=r"shares.csv: all x and y lie in \[0, 1\], .*--unit relative"):
            PointsCsv(shares, tmp_path / "images")
    outside = table(tmp_path / "out.csv", [rows[0], ["dog", "sub/a.png", 9, 2, "yes"]])
    with pytest.raises(InputError, match=r"the point \(9, 2\) of dog lies outside the image of 8 x 4"):
        PointsCsv(outside, tmp_path / "images")[0]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", " ", ".", "a\0b", "..\\x", "C:/../../x"])
def test_names_that_lead_out_of_the_data_root(tmp_path, name):
    with pytest.raises(InputError, match="must stay there"):
        inside(tmp_path, name)


def test_names_that_stay_inside(tmp_path):
    assert inside(tmp_path, "a/../b.png") == tmp_path / "b.png"
    assert inside(tmp_path, "..b.png") == tmp_path / "..b.png"


def test_a_folder_of_classes(tmp_path):
    for name in ("dogs/1.jpg", "dogs/deep/2.PNG", "cats/3.jpg"):
        picture(tmp_path / name)
    (tmp_path / "birds").mkdir()
    (tmp_path / "dogs/._1.jpg").write_bytes(b"")
    data = ImageFolder(tmp_path)
    assert data.keys() == ["cats/3.jpg", "dogs/1.jpg", "dogs/deep/2.PNG"]
    assert [(one.label, one.extra["index"]) for one in (data[0], data[2])] == [("cats", 0), ("dogs", 1)]
    assert data.facts["numbering"] == "folders"
    assert "birds" in data.facts["problems"][0]
    with pytest.raises(InputError, match="holds no images"):
        ImageFolder(tmp_path / "birds")
    with pytest.raises(InputError, match="no folder"):
        ImageFolder(tmp_path / "fish")


def test_images_beside_the_class_folders_are_told(tmp_path):
    picture(tmp_path / "dogs/1.jpg")
    picture(tmp_path / "stray.jpg")
    data = ImageFolder(tmp_path)
    assert data.keys() == ["dogs/1.jpg"]
    assert data.facts["problems"] == ["1 x an image outside the class folders, left out; first: stray.jpg"]


def test_a_part_of_imagenet_keeps_its_numbers(tmp_path):
    for wnid in ("n01443537", "n02099601"):
        picture(tmp_path / "val" / wnid / "ILSVRC2012_val_00000001.JPEG")
    data = ImageFolder(tmp_path)
    assert data.keys()[1] == "n02099601/ILSVRC2012_val_00000001.JPEG"
    assert [data[0].extra["index"], data[1].extra["index"]] == [1, 207]  # goldfish, golden retriever
    assert data.facts["numbering"] == "imagenet-1k"


def _devkit(root):
    """The two files of the devkit that count: a struct array whose parents (with children) are no classes."""
    data = root / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    synsets = np.array([(1, "n02099601", "dog", 0), (2, "n01443537", "fish", 0), (3, "n00001740", "entity", 2)], kinds)
    savemat(data / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    return data.parent


@pytest.mark.parametrize("form", ["folder", "archive", "meta.bin"])
def test_flat_imagenet_takes_its_labels_from_the_devkit(tmp_path, form):
    for number in (3, 1, 2):
        picture(tmp_path / f"val/ILSVRC2012_val_0000000{number}.JPEG")
    with pytest.raises(InputError, match=r"their labels are in ILSVRC2012_devkit_t12.tar.gz"):
        ImageFolder(tmp_path)
    if form == "meta.bin":
        torch.save(({"n01443537": ("goldfish",)}, ["n01443537", "n02099601", "n01443537"]), tmp_path / "meta.bin")
    elif form == "folder":
        _devkit(tmp_path)
    else:
        with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
            archive.add(_devkit(tmp_path / "elsewhere"), "ILSVRC2012_devkit_t12")
    data = ImageFolder(tmp_path)
    assert [data[i].label for i in range(3)] == ["n01443537", "n02099601", "n01443537"]
    assert data[1].extra["index"] == 207
    picture(tmp_path / "val/ILSVRC2012_val_00000004.JPEG")
    with pytest.raises(InputError, match="4 validation images, but the devkit has labels for 3"):
        ImageFolder(tmp_path)
    for number in (3, 4):
        (tmp_path / f"val/ILSVRC2012_val_0000000{number}.JPEG").unlink()
    with pytest.raises(InputError, match="2 validation images, but the devkit has labels for 3"):
        ImageFolder(tmp_path)


def test_a_devkit_that_is_broken(tmp_path):
    picture(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"half")
    with pytest.raises(InputError, match=r"cannot read .*meta.mat"):
        ImageFolder(tmp_path)
    truth = _devkit(tmp_path) / "data/ILSVRC2012_validation_ground_truth.txt"
    for wrong in ("3\n", "4\n", "dog\n"):  # a parent, nobody, no number
        truth.write_text(wrong)
        with pytest.raises(InputError, match="not a list of its class ids"):
            ImageFolder(tmp_path)
    (tmp_path / "meta.bin").write_bytes(b"half")
    with pytest.raises(InputError, match=r"not the meta.bin"):
        ImageFolder(tmp_path)


@pytest.fixture
def ade20k(tmp_path):
    """Class 13 * 256 + 37 = 3365 under R in 130..139, G = 37, as protocols give it."""
    root = tmp_path / "ADE20KSpeechPrompted"
    for name in ("a", "b"):
        picture(root / f"frames/train/{name}.jpg", (3, 2))
    coded(root / "annotations/train/a_seg.png", [[130, 139, 140], [129, 135, 0]], [[37, 37, 37], [37, 36, 0]])
    coded(root / "annotations/train/b_seg.png", [[0, 0, 0], [0, 0, 0]], [[5, 5, 5], [0, 0, 0]])
    (root / "audio").mkdir()
    (root / "audio/clip.wav").write_bytes(b"RIFF")
    rows = [
        ["image_location", "ade_class_id", "speech_prompt_file", "timing"],
        ["train/a.jpg", "3365", "data/speech/clip.wav", "[0.5, 1.25]"],
        ["train/a.jpg", "3365", "", "[0, 1]"],
        ["train/a.jpg", "0", "clip.wav", "[0, 1]"],
        ["train/b.jpg", "5.0", "clip.wav", ""],
        ["train/b.jpg", "x", "clip.wav", ""],
        ["train/a.jpg", "3365", "data/speech/clip.wav", "[0.5, 1.25]"],
    ]
    table(root / "prompted_segmentation.csv", rows)
    return root, rows


def test_ade20k_speech_prompted(ade20k):
    root, _ = ade20k
    data = ADE20KPrompted(root)
    assert data.name == "ade20k-speech"
    assert data.keys() == ["2:train/a.jpg", "5:train/b.jpg", "7:train/a.jpg"]
    sample = data[0]
    assert sample.label == "3365"
    np.testing.assert_array_equal(sample.masks["3365"], [[1, 1, 0], [0, 0, 0]])
    assert sample.extra == {"class_id": 3365, "audio": str(root / "audio/clip.wav"), "timing": (0.5, 1.25)}
    assert data[1].extra["timing"] is None
    np.testing.assert_array_equal(data[1].masks["5"], [[1, 1, 1], [0, 0, 0]])
    assert data.facts["problems"] == [
        "2 x a row without clip or class, left out as published; first: line 3",
        "1 x a row whose class is not a number; first: 'x' in line 6",
    ]
    assert ADE20KPrompted(root, names={3365: "dog"})[0].label == "dog"


@pytest.mark.parametrize("written", ["nan", "NaN", " N/A "])
def test_a_clip_that_is_a_written_nan_is_none(ade20k, written):
    root, rows = ade20k
    table(root / "prompted_segmentation.csv", [*rows[:2], ["train/b.jpg", "5", written, ""]])
    data = ADE20KPrompted(root)
    assert data.keys() == ["2:train/a.jpg"]
    assert data.facts["problems"] == ["1 x a row without clip or class, left out as published; first: line 3"]


def test_words_of_ade20k_may_be_moments(ade20k):
    root, rows = ade20k
    table(root / "prompted_segmentation.csv", [rows[0], ["train/a.jpg", "3365", "clip.wav", "[1.5, 1.5]"]])
    assert ADE20KPrompted(root)[0].extra["timing"] == (1.5, 1.5)


def test_ade20k_sound_prompted(ade20k):
    root, rows = ade20k
    with pytest.raises(InputError, match="no column 'vggsound_file'"):
        ADE20KPrompted(root, "sound")
    table(root / "prompted_segmentation.csv", [["image_location", "ade_class_id", "vggsound_file"], rows[1][:3]])
    data = ADE20KPrompted(root)
    assert data.name == "ade20k-sound"
    assert data[0].extra["timing"] is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["train/a.jpg", "3365", "missing.wav", ""], "no such clip"),
        (["train/c.jpg", "3365", "clip.wav", ""], "no such image"),
        (["train/a.png", "3365", "clip.wav", ""], "ends with .jpg"),
        (["../a.jpg", "3365", "clip.wav", ""], "must stay there"),
        (["train/a.jpg", "3365", "clip.wav", "[2, 1]"], "does not go forward"),
        (["train/a.jpg", "3365", "clip.wav", "[1]"], r"JSON list \[start, end\]"),
        (["train/a.jpg", "3365", "clip.wav", "1 to 2"], r"JSON list \[start, end\]"),
    ],
)
def test_broken_rows_of_ade20k(ade20k, row, message):
    root, rows = ade20k
    table(root / "prompted_segmentation.csv", [rows[0], row])
    data = ADE20KPrompted(root)
    with pytest.raises(InputError, match=message):
        data[0]


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("a.json", '{"n1": "tench", "n2": "dog"}', {"n1": "tench", "n2": "dog"}),
        ("a.json", '{"0": ["n1", "tench"]}', {"n1": "tench"}),
        ("a.json", '["tench", "dog"]', {"0": "tench", "1": "dog"}),
        ("a.csv", 'wnid,name\nn1,"tench, Tinca"\n', {"n1": "tench, Tinca"}),
        ("a.tsv", "n1\ta tench\n\n", {"n1": "a tench"}),
        ("a.txt", "n01440764 tench, Tinca tinca\nn2 dog\n", {"n01440764": "tench, Tinca tinca", "n2": "dog"}),
    ],
)
def test_class_names_from_files(tmp_path, file, text, found):
    (tmp_path / file).write_text(text)
    assert names.read(tmp_path / file) == found


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.json", "{", "does not hold class names"),
        ("a.json", "3", "expected a JSON object or list"),
        ("a.json", '{"a": 1}', "expected"),
        ("a.txt", "n1 tench\nn1 dog\n", "names a class twice"),
        ("a.txt", "alone\n", "expected an id and a name"),
        ("a.csv", "n1,\n", "a class without a name"),
        ("a.txt", "", "no class names"),
    ],
)
def test_files_that_hold_no_class_names(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=message):
        names.read(tmp_path / file)


def test_names_of_wordnet_ids():
    assert names.of_wordnet("n02099601") == "Golden Retriever"
    assert names.of_wordnet("n02084071") == "dog"  # a hypernym, as ImageNet-Segmentation has them
    assert names.of_wordnet("n02084071", {"n02084071": "hound"}) == "hound"
    with pytest.raises(InputError, match="no ImageNet synset"):
        names.of_wordnet("n99999999")
    with pytest.raises(InputError, match="not a WordNet id"):
        names.of_wordnet("dog")


def test_importing_is_light(loaded_by):
    numbers = "audio, bootstrap, framing, localisation, perturbation, points, presence, segmentation"
    loaded = loaded_by(f"import legrad.datasets\nfrom legrad.metrics import {numbers}")
    assert not {"h5py", "sklearn", "scipy", "timm", "open_clip", "torchvision", "matplotlib"} & loaded


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    for module in ("h5py", "scipy.io", "scipy.ndimage"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    (tmp_path / "gtsegs_ijcv.mat").write_bytes(b"")
    picture(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    saliency, mask = np.eye(4), np.eye(4, dtype=bool)
    for call in (
        lambda: ImageNetSegmentation(tmp_path / "gtsegs_ijcv.mat"),
        lambda: ImageFolder(tmp_path),
        lambda: localisation.pointing(saliency, mask, tolerance=2),
    ):
        with pytest.raises(InputError, match=r"pip install 'legrad\[bench\]'"):
            call()
