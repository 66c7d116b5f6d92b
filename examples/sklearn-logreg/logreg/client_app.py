"""What each node runs."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from logreg.task import create_model, fit, get_parameters, load_data, set_parameters

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = create_model(context.run_config)
    set_parameters(model, msg.content["arrays"].to_numpy_ndarrays())
    x_train, _, y_train, _ = load_data(context.node_config)

    fit(model, x_train, y_train)

    metrics = {
        "num-examples": len(x_train),
        "train_loss": log_loss(y_train, model.predict_proba(x_train), labels=model.classes_),
    }
    content = RecordDict(
        {"arrays": ArrayRecord(get_parameters(model)), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = create_model(context.run_config)
    set_parameters(model, msg.content["arrays"].to_numpy_ndarrays())
    _, x_test, _, y_test = load_data(context.node_config)

    metrics = {
        "num-examples": len(x_test),
        "eval_loss": log_loss(y_test, model.predict_proba(x_test), labels=model.classes_),
        "eval_acc": model.score(x_test, y_test),
    }
    content = RecordDict({"metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)
