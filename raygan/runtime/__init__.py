"""Ray and storage, as every room above uses them.

A job's `settings` say where things live. `cluster` connects to Ray, and `capacity` checks that the job fits. `storage`
reads and writes files at local paths and URIs; `runs` keeps a long job's record, by which it is resumed. While the job
works, `progress` follows its events and `reservations` frees what dead trainings hold. `submit` runs a job on another
cluster. `private` has the private interfaces of Ray that are left.
"""
