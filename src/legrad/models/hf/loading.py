"""``legrad.load("hf:...")``: a folder or repository in the format of transformers."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from legrad.checks import first_line
from legrad.errors import InputError, LeGradError, UnsupportedModelError
from legrad.models import folders, network
from legrad.models.adapter import Adapter
from legrad.models.files import check_shards, check_size, damage, read_json
from legrad.models.hf import companions, library

# parameters that no explanation uses
_UNUSED = ("mask_token",)


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """The model with its image processor, tokenizer and class names; code from the repository is never run.

    Args:
        name: a folder, or a repository of the Hugging Face hub, ORG/NAME.
        device: default CPU.
        dtype: default float32, whatever the checkpoint holds.

    Raises:
        InputError: transformers is missing, nothing found, or weights that do not fill the model.
        UnsupportedModelError: a model that cannot be explained.
    """
    from dataclasses import replace

    try:
        import transformers
    except ImportError as error:
        raise InputError("hf: models need transformers 5: pip install 'legrad[transformers]'") from error
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise InputError(f"hf: models need transformers 5 or newer, found {transformers.__version__}")
    folder = Path(os.path.expanduser(name))
    source = str(folder) if folder.is_dir() else name
    # a folder of timm can be loaded here too, if it holds all that transformers wants
    other_library = "" if "'hf:" in (hint := folders.hint(name)) else hint
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(f"there is no folder {name!r}")
    try:
        if folder.is_dir():
            check_shards(folder)
        if (folder / "config.json").is_file():
            read_json(folder / "config.json")
        with _from(folder):
            raw, _ = transformers.PreTrainedConfig.get_config_dict(source)
            check_size(raw, f"the config.json of {name!r}")
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            kind = _kind(transformers, config, name)
            if library.find(kind) is None:
                raise UnsupportedModelError(f"transformers' {kind.__name__} {library.reason(kind.__name__)}")
            with _no_progress(transformers, folder.is_dir()):
                model, report = kind.from_pretrained(
                    source, config=config, dtype=dtype or torch.float32, output_loading_info=True
                )
    except LeGradError:
        raise
    except Exception as error:  # broken files come out of safetensors, pickle and json in every shape
        reason = (damage(folder) if folder.is_dir() else "") or first_line(error)
        missing = "" if folder.is_dir() else f"there is no folder {name!r}, and as a repository "
        what = repr(name) if folder.is_dir() else "it"
        raise InputError(
            f"{missing}transformers could not load {what}: {reason}. Expected a folder with config.json "
            "and weights, or a repository ORG/NAME; without a network only folders, repositories in the cache and "
            f"'embedded' work{other_library}"
        ) from error
    if "pooler.dense.weight" in report["missing_keys"]:
        # trained without a pooler, which transformers would fill with random numbers
        model.pooler = None
    adapter = library.adapt(model.eval().to(device or "cpu"))
    assert adapter is not None
    _check_complete(adapter, report["missing_keys"], name)
    with _from(folder):
        return replace(companions.with_companions(adapter, source, name), name=f"hf:{name}")


def _from(folder: Path) -> contextlib.AbstractContextManager[None]:
    """A block that loads from a folder, or from the hub if it is none."""
    return contextlib.nullcontext() if folder.is_dir() else network.hub()


@contextlib.contextmanager
def _no_progress(library: Any, local: bool) -> Iterator[None]:
    """No progress bars while a local folder is read; downloads keep theirs."""
    logging = library.utils.logging
    hide = local and logging.is_progress_bar_enabled()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def _kind(library: Any, config: Any, name: str) -> Any:
    """The class that the configuration asks for."""
    architectures = getattr(config, "architectures", None)
    names = list(architectures) if isinstance(architectures, list | tuple) else []
    if config.model_type == "timm_wrapper":
        names = ["TimmWrapperForImageClassification" if config.num_labels else "TimmWrapperModel"]
    attributes = [getattr(library, class_name, None) for class_name in names if isinstance(class_name, str)]
    kinds = [kind for kind in attributes if isinstance(kind, type)]
    if not kinds:
        raise InputError(
            f"{name!r} names no class of transformers {library.__version__} (architectures: {names}): code of its own "
            "is not run; build the model yourself and use legrad.wrap"
        )
    return kinds[0]


def _check_complete(adapter: Adapter, missing: Any, name: str) -> None:
    """Raise ``InputError`` if parameters that the explanation uses are random."""
    names = {id(parameter): key for key, parameter in adapter.model.named_parameters()}
    of_tower = {names[id(parameter)] for parameter in adapter.anatomy.tower.parameters() if id(parameter) in names}
    random = sorted(key for key in set(missing) & of_tower if not key.endswith(_UNUSED))
    if random:
        raise InputError(
            f"the weights of {name!r} lack {len(random)} parameters of {type(adapter.model).__name__} (first: "
            f"{random[0]}): its answers would be random; build it as the class it was saved from and use legrad.wrap"
        )
