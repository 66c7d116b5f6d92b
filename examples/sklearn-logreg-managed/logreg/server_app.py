"""For plain ``flwr run`` only. Under onefed the app is managed, and this is never called."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from logreg.task import initial_arrays

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train with federated averaging."""
    FedAvg().start(
        grid=grid,
        initial_arrays=initial_arrays(context.run_config),
        num_rounds=context.run_config["num-server-rounds"],
    )
