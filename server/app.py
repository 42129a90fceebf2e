"""The three answers of the sample replica: its name, its heartbeat, and a refusal of all other paths."""

from quart import Quart, Response, request

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(server_id: str) -> Quart:
    """Make the application.

    Args:
        server_id: The name of the replica, which `/home` shows.
    """
    app = Quart(__name__, static_folder=None)

    @app.get("/home")
    async def home() -> dict[str, str]:
        return {"message": f"Hello from Server: {server_id}", "status": "successful"}

    @app.get("/heartbeat")
    async def heartbeat() -> Response:
        return Response("", 200)

    @app.route("/", defaults={"path": ""}, methods=METHODS)
    @app.route("/<path:path>", methods=METHODS)
    async def other(path: str) -> tuple[dict[str, str], int]:
        sentence = f"<Error> '{request.path}' endpoint does not exist in server replicas"
        return {"message": sentence, "status": "failure"}, 400

    return app
