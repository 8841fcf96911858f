"""Loaded by vLLM's server. It imports nothing, for that process is not ours."""


class OnlyV1:
    """Has the server answer under /v1/ only. Its key guards nothing else, and other paths write ads (vllm #58144)."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """An ASGI application: the server behind it, or the status 404."""
        if scope["type"] == "lifespan" or scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body"})
