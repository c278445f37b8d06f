"""The whole system in one command: photos or drawn faces, shards, a generator, a service.

`settings` says what the command accepts. `quickstart` calls the same functions as the jobs `prepare`, `train` and
`serve`, and `timetable` shares out its minutes.
"""
