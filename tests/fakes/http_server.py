"""An ASGI application on a real socket, in the event loop of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from edge_agent.server import Door, listen, url_of


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[str]:
    """The base URL of ``app`` while the block runs."""
    socket = listen(Door(port=0))
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield url_of(socket)
    finally:
        server.should_exit = True
        await task
        socket.close()
