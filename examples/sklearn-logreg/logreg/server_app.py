"""What the coordinator runs."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from logreg.task import create_model, get_parameters, load_digits_split, set_parameters

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train with federated averaging."""
    model = create_model(context.run_config)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_parameters(model, arrays.to_numpy_ndarrays())
        _, x_test, _, y_test = load_digits_split()
        return MetricRecord({"accuracy": model.score(x_test, y_test)})

    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(get_parameters(model)),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
