"""`fedsdr deploy` and `fedsdr node`: a federation between organisations, over Flower."""

from pathlib import Path
from typing import Annotated

import typer

deploy = typer.Typer(no_args_is_help=True, help="Set up a federation between organisations, over Flower.")

ServerDir = Annotated[
    Path, typer.Argument(help="The server's folder, as written by `fedsdr deploy init`.", metavar="SERVER")
]


@deploy.command("init")
def deploy_init(
    folder: Annotated[
        Path, typer.Argument(help="A new folder, for the server's folder and one for each client.")
    ],
    clients: Annotated[str, typer.Option(help="Names of the clients, separated by commas.")],
    address: Annotated[
        str, typer.Option(help="Address at which clients reach the server, host:port.")
    ] = "localhost:8443",
    model: Annotated[str, typer.Option(help="Base model of the federation.")] = "smollm2-135m-instruct",
) -> None:
    """Set up a federation over Flower between organisations: certificates, keys, configurations."""
    from fedsdr.deployment.init import init, is_local

    server, *others = init(
        folder, [name.strip() for name in clients.split(",") if name.strip()], address, model
    )
    proxy = "" if is_local(address) else f", nginx -p {server} -c nginx.conf"
    print(f"{server}: start.sh{proxy}; `fedsdr deploy register {server}`; `fedsdr run RECIPE --on {server}`")
    for place in others:
        if is_local(address):
            print(f"{place}: put the data into data/<domain>/; `fedsdr node {place / 'node.toml'}`")
        else:
            print(f"{place}: send it to that client; put its public key into {server}/keys/{place.name}.pub")


@deploy.command("register")
def deploy_register(
    server: ServerDir,
) -> None:
    """Admit the clients whose public keys are in SERVER/keys. Repeat it after adding a key."""
    from fedsdr.deployment.keys import register

    register(server)


@deploy.command("status")
def deploy_status(
    server: ServerDir,
) -> None:
    """Show which clients are connected."""
    from fedsdr.deployment.keys import status

    for client, state in status(server).items():
        print(f"{client}: {state}")


@deploy.command("renew")
def deploy_renew(
    server: ServerDir,
) -> None:
    """Renew the server's certificate for a year. Then restart SuperLink and proxy."""
    from fedsdr.deployment.certificates import renew

    print(f"{server / 'server.crt'}: valid until {renew(server):%Y-%m-%d}")


@deploy.command("peers")
def deploy_peers(
    file: Annotated[Path, typer.Argument(help="This client's node.toml.")],
    keys: Annotated[Path, typer.Argument(help="A folder with the clients' public keys, <client>.pub.")],
) -> None:
    """At a client: import the others' public keys for secure aggregation, and show their fingerprints."""
    from fedsdr.deployment.keys import take_peers

    for client, fingerprint in take_peers(file, keys).items():
        print(f"{client}: {fingerprint}")
    print("verify them with each client (`ssh-keygen -lf node.key.pub`): the server could have sent others")


def node(
    file: Annotated[Path, typer.Argument(help="The client's node.toml, as written by `fedsdr deploy init`.")],
    check: Annotated[
        bool, typer.Option("--check", help="Only check file, key, data, model and the way to the server.")
    ] = False,
) -> None:
    """Connect this client to its server, and serve until stopped."""
    from fedsdr.deployment.node import check_node, run_node

    if check:
        print("\n".join(check_node(file)))
    else:
        run_node(file)
