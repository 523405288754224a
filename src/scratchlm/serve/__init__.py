"""A trained model for other programs and for people: an HTTP server with OpenAI's interface, and a page.

    protocol.py   what is asked           answers.py   what is answered       errors.py   what went wrong
    app.py        the routes              worker.py    the thread with the engines
    limits.py     what is refused         metrics.py   what is counted        server.py   start and end

One thread computes; the event loop talks to clients, and the two hand each other short lists.
"""
