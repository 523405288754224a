"""Work comes in, figures go out: what a step, attention and several processes cost in time and memory.

    step.py  attention.py                  one process: times and memory over a grid
    comm.py  ddp.py  shards.py             several, started by group.py; parallel.py has ways of training
    profile.py  memory.py  memory_page.py  where the time and the memory of a step go

All measuring is in clock.py; tables.py writes what was found as Markdown, LaTeX or JSON lines. The commands
`scratchlm bench` and `scratchlm profile` are thin shells around these files.
"""
