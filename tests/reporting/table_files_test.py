"""The exact Markdown, LaTeX and CSV of one small table."""

import csv

from crossearth_jax.reporting.score_tables import NOTHING, Block, Entry, Table
from crossearth_jax.reporting.table_files import as_csv, as_latex, as_markdown

TABLE = Table(
    caption="IoU in %",
    head=(Entry(text="Target"), Entry(text=""), Entry(text="a_b & c"), Entry(text="Note")),
    blocks=(
        Block(title="Unseen", rows=((Entry(text="cold", note="x"), Entry(text=""), Entry(text="\u22124.5", bold=True),
                                     Entry(text="=1+1")),)),
        Block(title="", rows=((Entry(text="C:\\{x}"), Entry(text=""), Entry(text=NOTHING), Entry(text="a, \"b\"")),)),
    ),
    plain=(0, 3),
)  # fmt: skip


def test_markdown():
    assert (
        as_markdown(TABLE)
        == r"""IoU in %

| Target | a_b & c | Note |
| --- | ---: | --- |
| **Unseen** |  |  |
| cold (x) | **−4.5** | =1+1 |
| C:\\{x} | – | a, "b" |
"""  # noqa: RUF001
    )


def test_latex():
    assert (
        as_latex(TABLE, "gap")
        == r"""\begin{table}
\centering
\caption{IoU in \%}
\label{tab:gap}
\begin{tabular}{lrl}
\toprule
Target & a\_b \& c & Note \\
\midrule
\multicolumn{3}{l}{\textit{Unseen}} \\
cold & \textbf{$-$4.5} & =1+1 \\
\addlinespace
C:\textbackslash{}\{x\} & -- & a, "b" \\
\bottomrule
\end{tabular}
\end{table}
"""
    )


def test_csv():
    text = as_csv(TABLE)
    assert list(csv.reader(text.splitlines())) == [
        ["Group", "Target", "a_b & c", "Note"],
        ["Unseen", "cold", "-4.5", "'=1+1"],
        ["", "C:\\{x}", "", 'a, "b"'],
    ]
