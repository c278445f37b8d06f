"""Fault drills: real jobs on several Ray nodes of this machine, what breaks under them, and what that costs.

1. `nodes`: Ray nodes on this machine; `harness`: jobs started as users start them; `watched`: what a run leaves in
   storage and MLflow.
2. `scenarios`: all drills by name; `training`, `reading`, `serving` and `outages` hold most of them. Each starts a job,
   waits until it is at work, breaks something (SIGKILL, a drain, a full disk), and compares the result with an
   undisturbed job's.
3. `outcome`: what a drill found, and the table of all findings.
4. `run`: `jobs/drill.py`, all drills one after another. A failed check fails the command.
5. `load`: `jobs/benchmark.py serve-drill`, the service under many clients, with faults or hostile input.
6. `known_answers`: whether the service's answers are right, for `load` and `serving`.
"""
