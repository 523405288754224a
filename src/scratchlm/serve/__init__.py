"""A trained model for other programs and for people: an HTTP server with OpenAI's interface, and a page.

    protocol.py   what is asked            jobs.py      what the engine gets of it
    answers.py    what is answered         stream.py    piece by piece, or as a whole
    app.py        the routes               worker.py    the thread with the engines
    limits.py     what is refused          metrics.py   what is counted
    errors.py     what went wrong          server.py    start and end
    page/         the page

One thread computes; the event loop talks to clients, and the two hand each other short lists.
"""
