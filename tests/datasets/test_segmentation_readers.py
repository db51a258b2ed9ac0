"""The readers of masks, on tiny files in the formats of the published sets."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
from helpers.dataset_files import Gtsegs, coded, grey, picture
from PIL import Image

from legrad.datasets import IGNORE, ImageNetS, ImageNetSegmentation, MaskFolder
from legrad.errors import InputError

RNG = np.random.default_rng(0)


def _pair(height, width):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8), RNG.integers(0, 2, (height, width), dtype=np.uint8)


@pytest.fixture
def gtsegs(tmp_path):
    made = Gtsegs(tmp_path / "gtsegs_ijcv.mat")
    pairs = [_pair(4, 7), _pair(5, 3)]
    made.add(*pairs[0], "n01440764_1", "n01440764")
    made.add(*pairs[1], "n02084071_9", "n02084071", parts=3)
    return made, pairs


def test_gtsegs_is_dereferenced_twice_and_transposed(gtsegs):
    made, pairs = gtsegs
    data = ImageNetSegmentation(made.close())
    assert data.keys() == ["n01440764_1", "n02084071_9"]
    assert len(data) == data.facts["items"] == 2
    for index, (image, mask) in enumerate(pairs):
        sample = data[index]
        np.testing.assert_array_equal(np.asarray(sample.image), image)
        assert sample.label == data.keys()[index][:9]
        assert list(sample.masks) == [sample.label]
        assert sample.masks[sample.label].dtype == bool
        np.testing.assert_array_equal(sample.masks[sample.label], mask == 1)
    assert data[1].extra["parts"] == 3
    assert data.classes == ["n01440764", "n02084071"]
    assert data.facts["problems"] == ["1 x not the published set of 4276 images and 445 classes; first: 2 and 2"]
    with pytest.raises(IndexError):
        data[2]


def _first_pixel(data):
    return data[0].image.getpixel((0, 0))


def test_gtsegs_is_opened_again_in_workers(gtsegs):
    made, pairs = gtsegs
    data = ImageNetSegmentation(made.close())
    assert data._handle is None
    here = _first_pixel(data)
    assert here == tuple(pairs[0][0][0, 0])
    own = data._handle
    assert _first_pixel(pickle.loads(pickle.dumps(data))) == here
    data._pid -= 1  # as a forked child finds it
    assert _first_pixel(data) == here
    assert data._handle is not own
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_first_pixel, (data,)) == here


def test_gtsegs_must_not_lead_to_other_files(tmp_path, gtsegs):
    made, _ = gtsegs
    (tmp_path / "secret").write_bytes(bytes(84))
    outside = made.refs.create_dataset("outside", (3, 7, 4), np.uint8, external=[(str(tmp_path / "secret"), 0, 84)])
    made.add(*_pair(4, 7), "bad", "n01440764", img=outside.ref)
    path = made.close()
    with pytest.raises(InputError, match="stored in another file"):
        ImageNetSegmentation(path)[2]
    with h5py.File(tmp_path / "link.mat", "w") as file:
        file["value"] = h5py.ExternalLink(str(path), "value")
    with pytest.raises(InputError, match="a link to another file"):
        ImageNetSegmentation(tmp_path / "link.mat")


def test_images_of_gtsegs_have_pillows_limit(gtsegs, monkeypatch):
    made, _ = gtsegs
    data = ImageNetSegmentation(made.close())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="84 values, more than Pillow's limit"):
        data[0]


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda m: {"img": m.put(np.zeros((3, 7, 4), np.float32))}, "an image is uint8"),
        (lambda m: {"img": m.put(np.zeros((7, 4), np.uint8))}, r"uint8 \(3, width, height\)"),
        (lambda m: {"img": m.put(np.zeros((3, 4, 7), np.uint8))}, "the mask is 7 x 4 pixels, its image 4 x 7"),
        (lambda m: {"gt": m.put(np.zeros((7, 4), np.uint8))}, "must refer to an array of references"),
        (lambda m: {"gt": m.references([m.put(np.full((7, 4), 2, np.uint8))])}, "a mask holds 0 and 1"),
        (lambda m: {"gt": m.references([m.put(np.zeros((7, 4), bool))])}, "a mask is uint8"),
        (lambda m: {"gt": m.references([m.put(np.zeros((7, 4), np.uint8))] * 33)}, "1 to 32 masks"),
        (lambda m: {"gt": m.references([m.file["#refs#"].ref])}, "leads to a group"),
        (lambda m: {"gt": h5py.Reference()}, "gtsegs_ijcv.mat, bad"),
        (lambda m: {"target": m.text("tench")}, "not a WordNet id"),
        (lambda m: {"target": m.put(np.zeros((9, 1), np.uint8))}, "not a WordNet id"),
    ],
)
def test_a_broken_item_of_gtsegs_is_one_line_and_leaves_the_others(gtsegs, replace, message):
    made, pairs = gtsegs
    made.add(*_pair(4, 7), "bad", "n01440764", **replace(made))
    data = ImageNetSegmentation(made.close())
    with pytest.raises(InputError, match=message) as caught:
        data[2]
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(np.asarray(data[1].image), pairs[1][0])


def test_as_many_masks_as_gtsegs_may_refer_to(gtsegs):
    made, _ = gtsegs
    image, mask = _pair(4, 7)
    made.add(image, mask, "many", "n01440764", parts=32)
    sample = ImageNetSegmentation(made.close())[2]
    assert sample.extra["parts"] == 32
    np.testing.assert_array_equal(sample.masks["n01440764"], mask == 1)


def test_identifiers_of_gtsegs_that_are_not_unique_are_told_and_told_apart(gtsegs):
    made, _ = gtsegs
    made.add(*_pair(4, 7), "n01440764_1", "n01440764")
    data = ImageNetSegmentation(made.close())
    assert len(set(data.keys())) == 3
    assert "'n01440764_1' of item 2" in data.facts["problems"][0]


def test_files_that_are_not_gtsegs(tmp_path, gtsegs):
    with pytest.raises(InputError, match="no file"):
        ImageNetSegmentation(tmp_path / "missing.mat")
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(InputError, match=r"not a MATLAB v7.3"):
        ImageNetSegmentation(tmp_path / "old.mat")
    h5py.File(tmp_path / "empty.mat", "w").close()
    with pytest.raises(InputError, match="value is missing"):
        ImageNetSegmentation(tmp_path / "empty.mat")
    made, _ = gtsegs
    del made.columns["gt"]
    with pytest.raises(InputError, match="gt is missing"):
        ImageNetSegmentation(made.close())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_gtsegs_is_one_line(tmp_path, gtsegs, share):
    whole = gtsegs[0].close().read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cut.mat, incomplete or damaged: .*truncated"):
        ImageNetSegmentation(tmp_path / "cut.mat")


def test_arrays_of_gtsegs_must_be_references_in_a_column(tmp_path, gtsegs):
    made, _ = gtsegs
    path = made.close()
    with h5py.File(path, "r+") as file:
        file["flat"] = file["value/id"][:, 0]
        file.move("value/id", "kept")
        file["value/id"] = file["flat"]
    with pytest.raises(InputError, match=r"value/id must have shape \(N, 1\), not \(2,\)"):
        ImageNetSegmentation(path)
    with h5py.File(path, "r+") as file:
        del file["value/id"]
        file["value/id"] = np.zeros((2, 1))
    with pytest.raises(InputError, match="value/id must be an array of object references"):
        ImageNetSegmentation(path)
    with h5py.File(path, "r+") as file:
        del file["value/id"]
        file["value/id"] = file["kept"][:1]
    with pytest.raises(InputError, match="differ in length"):
        ImageNetSegmentation(path)


WNIDS = [f"n{i:08d}" for i in range(1, 920)]


@pytest.fixture
def imagenet_s(tmp_path):
    """Two images of the 919-class version; the list of classes is not sorted, as on the web page."""
    root = tmp_path / "ImageNetS919"
    ids = np.array([[0, 300, 300], [1000, 2, 300]])
    for wnid, name in ((WNIDS[299], "ILSVRC2012_val_00000001"), (WNIDS[6], "ILSVRC2012_val_00000002")):
        picture(root / "validation" / wnid / f"{name}.JPEG", (3, 2))
        coded(root / "validation-segmentation" / wnid / f"{name}.png", ids % 256, ids // 256)
    (tmp_path / "classes.txt").write_text("\n".join(reversed(WNIDS)))
    return root, tmp_path / "classes.txt"


def test_imagenet_s_decodes_16_bits_of_colour(imagenet_s):
    data = ImageNetS(*imagenet_s)
    assert data.keys() == [
        f"{WNIDS[6]}/ILSVRC2012_val_00000002.JPEG",
        f"{WNIDS[299]}/ILSVRC2012_val_00000001.JPEG",
    ]
    sample = data[1]
    assert sample.label == WNIDS[299]
    assert set(sample.masks) == {WNIDS[299], WNIDS[1]}
    np.testing.assert_array_equal(sample.masks[WNIDS[299]], [[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(sample.masks[WNIDS[1]], [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(sample.extra[IGNORE], [[0, 0, 0], [1, 0, 0]])
    # the image's own class was not found in it
    assert not data[0].masks[WNIDS[6]].any()
    assert data.facts["problems"] == ["1 x not the published set of 12419 images; first: 2"]


def test_imagenet_s_without_all_classes_would_shift_ids(imagenet_s):
    with pytest.raises(InputError, match="2 class folders, the published sets 919, 300 or 50"):
        ImageNetS(imagenet_s[0])


def test_imagenet_s_takes_the_folders_when_they_are_complete(tmp_path):
    root = tmp_path / "ImageNetS50"
    for wnid in WNIDS[:50]:
        (root / "validation" / wnid).mkdir(parents=True)
    picture(root / "validation" / WNIDS[3] / "a.JPEG", (2, 1))
    coded(root / "validation-segmentation" / WNIDS[3] / "a.png", [[4, 0]], [[0, 0]])
    np.testing.assert_array_equal(ImageNetS(root)[0].masks[WNIDS[3]], [[True, False]])


def test_broken_items_of_imagenet_s(imagenet_s):
    root, classes = imagenet_s
    data = ImageNetS(root, classes)
    mask = root / "validation-segmentation" / WNIDS[6] / "ILSVRC2012_val_00000002.png"
    coded(mask, np.full((2, 3), 255), np.full((2, 3), 3))
    with pytest.raises(InputError, match="class id 1023, there are 919"):
        data[0]
    coded(mask, np.full((2, 3), 920 % 256), np.full((2, 3), 920 // 256))
    with pytest.raises(InputError, match="class id 920, there are 919"):
        data[0]
    coded(mask, np.full((2, 3), 919 % 256), np.full((2, 3), 919 // 256))
    assert data[0].masks[WNIDS[918]].all()
    coded(mask, np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(InputError, match="the mask is 3 x 3 pixels, its image 3 x 2"):
        data[0]
    grey(mask, np.zeros((2, 3)))
    with pytest.raises(InputError, match="mode L"):
        data[0]
    mask.unlink()
    with pytest.raises(InputError, match="no such mask"):
        data[0]
    (root / "validation" / WNIDS[6] / "ILSVRC2012_val_00000002.JPEG").write_bytes(b"no image")
    with pytest.raises(InputError, match="not an image"):
        data[0]


def test_folders_of_imagenet_s_that_the_list_does_not_have(imagenet_s):
    root, classes = imagenet_s
    picture(root / "validation/n99999999/a.JPEG", (3, 2))
    data = ImageNetS(root, classes)
    assert len(data) == 2
    assert "its class is not in the list; first: n99999999" in data.facts["problems"][0]


MASK = np.array([[0, 1, 1], [0, 0, 1]])


def test_a_folder_of_masks(tmp_path):
    picture(tmp_path / "images/a.jpg", (3, 2))
    picture(tmp_path / "images/b.png", (3, 2))
    picture(tmp_path / "images/c.png", (3, 2))
    grey(tmp_path / "masks/a.png", MASK * 255)
    grey(tmp_path / "masks/c.png", MASK + 1)
    grey(tmp_path / "masks/z.png", MASK)
    data = MaskFolder(tmp_path, class_name="dog")
    assert data.keys() == ["a.jpg", "b.png", "c.png"]
    np.testing.assert_array_equal(data[0].masks["dog"], MASK == 1)
    with pytest.raises(InputError, match=r"b.png has no mask"):
        data[1]
    with pytest.raises(InputError, match="holds the values 1, 2;"):
        data[2]
    assert len(data.facts["problems"]) == 1
    assert "z.png" in data.facts["problems"][0]


@pytest.mark.parametrize("place", ["{name}/{stem}", "{stem}/{name}"])
def test_one_mask_per_class(tmp_path, place):
    picture(tmp_path / "images/a.jpg", (3, 2))
    for name, values in (("dog", MASK), ("a cat", 1 - MASK)):
        grey(tmp_path / "masks" / (place.format(name=name, stem="a") + ".png"), values)
    masks = MaskFolder(tmp_path)[0].masks
    assert list(masks) == ["a cat", "dog"]
    np.testing.assert_array_equal(masks["dog"], MASK == 1)
    np.testing.assert_array_equal(masks["a cat"], MASK == 0)


def test_masks_of_class_ids(tmp_path):
    picture(tmp_path / "images/a.jpg", (3, 2))
    grey(tmp_path / "masks/a.png", [[0, 7, 7], [255, 9, 0]])
    sample = MaskFolder(tmp_path, names={7: "dog", 9: "cat", 11: "bird"})[0]
    np.testing.assert_array_equal(sample.masks["dog"], [[0, 1, 1], [0, 0, 0]])
    assert set(sample.masks) == {"dog", "cat"}
    np.testing.assert_array_equal(sample.extra[IGNORE], [[0, 0, 0], [1, 0, 0]])
    with pytest.raises(InputError, match="class id 9, which has no name"):
        MaskFolder(tmp_path, names={7: "dog"})[0]
    with pytest.raises(InputError, match="say what they mean with names="):
        MaskFolder(tmp_path)[0]
    other = MaskFolder(tmp_path, names={7: "dog", 255: "cat"}, ignore=9)[0]
    np.testing.assert_array_equal(other.extra[IGNORE], [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(other.masks["cat"], [[0, 0, 0], [1, 0, 0]])
    with pytest.raises(InputError, match="class id 255, which has no name"):
        MaskFolder(tmp_path, names={7: "dog", 9: "cat"}, ignore=None)[0]


def test_a_folder_is_the_same_by_any_of_its_names(tmp_path, monkeypatch):
    picture(tmp_path / "images/a.jpg", (3, 2))
    (tmp_path / "masks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert MaskFolder(".").facts == MaskFolder(tmp_path).facts == MaskFolder("masks/..").facts


def test_what_a_black_and_white_mask_may_hold(tmp_path):
    picture(tmp_path / "images/a.jpg", (3, 2))
    for values, expected in ((MASK * 0, MASK * 0), (MASK * 0 + 1, MASK * 0 + 1), (MASK * 255, MASK)):
        grey(tmp_path / "masks/a.png", values)
        np.testing.assert_array_equal(MaskFolder(tmp_path)[0].masks["object"], expected)
    grey(tmp_path / "masks/a.png", [[0, 1, 2], [0, 0, 0]])
    with pytest.raises(InputError, match="holds the values 0, 1, 2; a black and white"):
        MaskFolder(tmp_path)[0]
    grey(tmp_path / "masks/a.png", MASK * 7)
    with pytest.raises(InputError, match=r"holds the values 0, 7; .* holds 0 and 1 or 255. If .*--names"):
        MaskFolder(tmp_path)[0]
    (tmp_path / "masks/a.png").unlink()
    grey(tmp_path / "masks/dog/a.png", MASK * 7)
    np.testing.assert_array_equal(MaskFolder(tmp_path)[0].masks["dog"], MASK)


def test_masks_that_cannot_be_told_apart(tmp_path):
    picture(tmp_path / "images/a.jpg", (3, 2))
    grey(tmp_path / "masks/a.png", MASK)
    grey(tmp_path / "masks/a.bmp", MASK)
    with pytest.raises(InputError, match="which one counts"):
        MaskFolder(tmp_path)
    (tmp_path / "masks/a.bmp").unlink()
    picture(tmp_path / "images/a.png", (3, 2))
    picture(tmp_path / "images/b.jpg", (3, 2))
    grey(tmp_path / "masks/b.png", MASK)
    found = MaskFolder(tmp_path)
    for index in range(2):
        with pytest.raises(InputError, match="two images named a"):
            found[index]
    assert found[2].key == "b.jpg"
    with pytest.raises(InputError, match="no folder"):
        MaskFolder(tmp_path / "images")
    (tmp_path / "empty/images").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no images"):
        MaskFolder(tmp_path / "empty")


def test_masks_of_another_size_or_kind(tmp_path):
    picture(tmp_path / "images/a.jpg", (3, 2))
    grey(tmp_path / "masks/a.png", MASK.T)
    with pytest.raises(InputError, match="the mask is 2 x 3 pixels, its image 3 x 2"):
        MaskFolder(tmp_path)[0]
    Image.new("RGB", (3, 2)).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match="mode RGB"):
        MaskFolder(tmp_path)[0]
    (tmp_path / "masks/a.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="not a mask that Pillow can read"):
        MaskFolder(tmp_path)[0]


# -- orientation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "orientation"), [((8, 8), 6), ((8, 8), 2), ((8, 6), 3), ((8, 6), 4), ((8, 6), 2)])
def test_masks_of_turned_images_are_not_guessed(tmp_path, size, orientation):
    """The mask fits before and after the rotation."""
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise(size, 90).convert("RGB").save(tmp_path / "images/a.jpg", exif=exif)
    grey(tmp_path / "masks/a.png", np.tri(size[1], size[0]) * 255)
    with pytest.raises(
        InputError, match=rf"a\.png: its image was turned by its EXIF orientation {orientation}, and the"
    ):
        MaskFolder(tmp_path)[0]


def test_masks_of_turned_images_whose_size_tells(tmp_path):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((8, 6), 90).convert("RGB").save(tmp_path / "images/a.jpg", exif=exif)
    grey(tmp_path / "masks/a.png", np.tri(8, 6) * 255)
    assert MaskFolder(tmp_path)[0].masks["object"].shape == (8, 6)
    exif[0x0112] = 1
    Image.effect_noise((8, 8), 90).convert("RGB").save(tmp_path / "images/a.jpg", exif=exif)
    grey(tmp_path / "masks/a.png", np.tri(8, 8) * 255)
    assert MaskFolder(tmp_path)[0].masks["object"].shape == (8, 8)
