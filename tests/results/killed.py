"""What the killed runs of ``test_folder.py`` do."""


def rounds(folder_class, root, arm):
    """A first run, and a second one that replaces it and dies somewhere; one file in the folder is the user's."""
    root.mkdir()
    (root / "mine.png").write_bytes(b"mine")
    with folder_class(root) as folder:
        _put(folder, "a", b"old")
        _put(folder, "b", b"old")
    arm()
    with folder_class(root, clear=True) as folder:
        _put(folder, "mine", b"new")
        _put(folder, "a", b"new")
        _put(folder, "c", b"new")


def _put(folder, image, data):
    stem = folder.stem(image, image)
    entry = {"image": image, "figure": folder.write(folder.name(stem, ".png", f"{stem}--figure"), data), "targets": []}
    folder.add([entry], {"settings": {}})
