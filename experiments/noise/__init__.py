"""The noise benchmark: which measure finds known noise, and does it help to forget that noise?

    python experiments/noise --quick      # a part of it, in minutes
    python experiments/noise              # all of it: three seeds, 84 corpora, 744 models

`design` lists the corpora and what is trained on each, `corpus` writes one, `cell` measures one,
`benchmark` runs many and writes the results, `table` and `map` show them.
"""
