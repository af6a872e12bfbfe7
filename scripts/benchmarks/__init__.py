"""What `scripts/bench` is made of.

One *session* is one fresh process that starts one engine, runs cases on it and stops it. The *supervisor* runs one session
at a time, because an idle cluster still burns processor time that its rival would miss. Rounds alternate between the engines,
A B C A B C, so that a machine which grows slower or faster in the meantime does so for all; ratios are taken within a round.

    case.py        the table: cases, the metrics each yields, what is required of them (start here to add a case)
    tasks.py       the functions that run in the engines' workers
    servers.py     the actor classes that run there
    engine.py      zray and Ray (one class: they share an API), Pool, ProcessPoolExecutor
    calls.py       bodies of the cases about tasks
    actors.py      bodies of the cases about actors
    objects.py     bodies of the cases about put, get and memory bandwidth
    pools.py       bodies of the cases about Executor, Pool and joblib
    growth.py      bodies of the cases that ask how cost grows with the number of things
    footprint.py   the engine's processes: their memory and their processor time
    stopwatch.py   calls per second
    session.py     the child's main program
    supervisor.py  starts sessions, hears their figures, cleans up whatever they leave
    results.py     samples by engine, metric and round; medians, ratios, verdicts
    report.py      the table for people and the JSON for programs
"""
