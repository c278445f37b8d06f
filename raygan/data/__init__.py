"""Data: photos → chunks → verdicts → shards → batches.

`sources` finds photos in folders and `archives`, `rows` in Parquet files, and `listing` is all of them with their
labels, as columns (`files`). `sorter` sorts each input's files by `kinds` and asks for labels: `layouts` finds them in
`folders` and `file_names`, `columns` in Parquet, `tables` in CSV; `labels` spells them. `examine` turns each file
(`decode`, and `faces` to crop it) into a square of pixels with measures and a verdict (`filters`), and `chunks` keeps
them on disk, a few hundred at a time (`locations` tells which photo is where). `duplicates`, with `neighbors`, and
`outliers` compare photos with each other, `split` holds some out for validation. `shards` are what remains; `photos`
and `reader` read them when they are needed, if they are still the same (`stamps`), and `batches` streams them to
training. `prepare` is the job, `passes` its steps, and `tasks` their part on Ray's workers; `report`, `sheets` and
`variation` tell people how it went. `synthetic` draws photos where there are none.
"""
