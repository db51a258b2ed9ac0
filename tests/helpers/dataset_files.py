"""Tiny data sets in the exact on-disk formats."""

import csv

import h5py
import numpy as np
from PIL import Image


def picture(path, size=(6, 4), seed=0):
    """A random RGB image of (width, height), as PNG bytes whatever the suffix: what is read is what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return pixels


def grey(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def coded(path, red, green):
    """An RGB mask; blue is noise, which no decoder may look at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blue = np.random.default_rng(0).integers(0, 256, np.shape(red))
    Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8)).save(path)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


class Gtsegs:
    """gtsegs_ijcv.mat: MATLAB's 512 bytes in front, /value with (N, 1) references, everything else in #refs#."""

    def __init__(self, path):
        self.path, self.file, self.columns, self.count = path, h5py.File(path, "w", userblock_size=512), {}, 0
        self.refs = self.file.create_group("#refs#")

    def put(self, values):
        """A nameless object and the reference to it."""
        self.count += 1
        return self.refs.create_dataset(f"r{self.count}", data=values).ref

    def references(self, references):
        return self.put(np.array(references, dtype=h5py.ref_dtype).reshape(-1, 1))

    def text(self, text):
        return self.put(np.array([[ord(c)] for c in text], np.uint16))

    def add(self, image, mask, name, wnid, parts=1, **others):
        """image (H, W, 3) and mask (H, W), stored column-major as MATLAB does; ``others`` replace a reference."""
        masks = [self.put(mask.T)] + [self.put(1 - mask.T) for _ in range(parts - 1)]
        made = {
            "img": self.put(image.transpose(2, 1, 0)),
            "gt": self.references(masks),
            "id": self.text(name),
            "target": self.text(wnid),
        }
        for column, reference in (made | others).items():
            self.columns.setdefault(column, []).append(reference)

    def close(self):
        for name, references in self.columns.items():
            data = np.array(references, dtype=h5py.ref_dtype).reshape(-1, 1)
            self.file.create_dataset(f"value/{name}", data=data)
        self.file.close()
        with open(self.path, "r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file")
        return self.path
