"""What a category of a data set holds, whatever its layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GOOD = "good"  # the name of no defect, whatever a layout calls it


@dataclass(frozen=True)
class TestImage:
    """One test picture.

    Attributes:
      path: its file.
      defect: the name of its defect, "good" for none.
      mask: the file of its mask, or a folder of masks that are one together; None where it has none.
      lot: the folders between that of the defect and the picture, such as "monday"; mostly none.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    path: Path
    defect: str
    mask: Path | None
    lot: str = ""

    @property
    def good(self) -> bool:
        """Whether it shows no defect."""
        return self.defect == GOOD

    @property
    def id(self) -> str:
        """Unique within the category, such as "crack/001"."""
        return "/".join(filter(None, (self.defect, self.lot, self.path.stem)))


@dataclass(frozen=True)
class Category:
    """One category of a data set; both lists are sorted by name.

    Attributes:
      root: its folder.
      name: of the category.
      dataset: that it belongs to.
      train: normal pictures.
      test: pictures with and without defects; empty where there are none.
      unused: files among those for training that are no pictures.
    """

    root: Path
    name: str
    dataset: str
    train: tuple[Path, ...]
    test: tuple[TestImage, ...]
    unused: tuple[Path, ...] = ()

    @property
    def masked(self) -> bool:
        """Whether every test picture with a defect has a mask."""
        return all(case.good or case.mask is not None for case in self.test)
