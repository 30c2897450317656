"""Pictures of a run: what a reader wants to see beside theory against measurement. One file per experiment.

`pictures: {<name>: {_target_: lab.pictures.<experiment>.<Class>}}` in an experiment's config draws `<name>.svg` and
`<name>.png` into the run directory once the claims are judged; wandb gets them with the figure, `lab record` keeps
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lab.claim import Run


class Picture(ABC):
    """One picture of a trained run.

    The first line of a subclass's docstring is its caption. What it draws is a function of the run alone, so the same
    run gives the same bytes.
    """

    @abstractmethod
    def draw(self, run: Run) -> Figure:
        """The picture, begun with `lab.figures.blank`; called with the lab's style in force.

        Model and data are on the CPU and their numbers finite. A module of pictures imports matplotlib inside `draw`:
        it is loaded before training, when nothing is drawn yet.
        """
