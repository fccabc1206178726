"""A table that stays readable at any width: numbers are never broken, and columns that do not fit are left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import fill

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from finetune.errors import printable

# Characters of a column of names, whose cells may go over several lines: so wide it should be, and must be.
_GOOD, _NARROWEST = 32, 12
_GAP = 2  # characters between two columns


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Attributes:
        title: Its title.
        right: Whether its cells are numbers, which end below each other.
        names: Whether its cells are names or sentences, which may go over several lines.
        leaves: When it is left out where the width does not suffice: 1 is the first; 0 for a column that stays.
    """

    title: str
    right: bool = False
    names: bool = False
    leaves: int = 0


@dataclass
class FittedTable:
    """Rows of text below columns; printed as wide as fits.

    Attributes:
        columns: The columns.
        rows: A cell for each column in each row.
    """

    columns: Sequence[TableColumn]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Adds a row; control characters in its cells are shown escaped."""
        self.rows.append(tuple(printable(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yields what Rich prints."""
        empty = {
            place
            for place, column in enumerate(self.columns)
            if column.leaves and not any(row[place] for row in self.rows)
        }
        left = self._left_out(options.max_width, empty)
        shown = [place for place in range(len(self.columns)) if place not in left | empty]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for place in shown:
            column = self.columns[place]
            width = self._widths()[place]
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.names,
                min_width=min(width, _NARROWEST) if column.names else width,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(Text(row[place]) for place in shown))  # plain text: a name may look like markup of Rich
        yield table
        if left:
            titles = ", ".join(f"`{self.columns[place].title}`" for place in sorted(left))
            sentence = f"Too narrow for {titles}: a wider terminal or the run's `plan.txt` shows that."
            yield Text(fill(sentence, options.max_width))  # a console that prints long lines as they are does not wrap

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Returns the width that Rich gives the table: all there is."""
        return Measurement(options.max_width, options.max_width)

    def _widths(self) -> list[int]:
        cells = [(column.title, *(row[place] for row in self.rows)) for place, column in enumerate(self.columns)]
        return [max(Text(cell).cell_len for cell in column) for column in cells]

    def _left_out(self, width: int, empty: set[int]) -> set[int]:
        """Returns the places of the columns that do not fit beside the others, of those that are not empty."""
        needed = [
            min(natural, _GOOD) if column.names else natural
            for natural, column in zip(self._widths(), self.columns, strict=True)
        ]
        left: set[int] = set()
        places = [place for place, column in enumerate(self.columns) if column.leaves and place not in empty]
        for place in sorted(places, key=lambda place: self.columns[place].leaves):
            if sum(needed[each] + _GAP for each in range(len(needed)) if each not in left | empty) <= width:
                break
            left.add(place)
        return left
