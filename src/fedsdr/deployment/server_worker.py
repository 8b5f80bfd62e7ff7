"""The process of one run at the server: the counterpart of `worker`, with the installed server app.

It replaces Flower's `run_serverapp` (as of 1.42, a private API), but neither unpacks code that came with the
run nor takes settings from it: a run names a submission, whose settings are in the server's folder.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from queue import Queue

from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.logger import flush_logs, mirror_output_to_queue, start_log_uploader, stop_log_uploader
from flwr.superlink.grid import HttpGrid

from fedsdr.deployment.flower_app import serve_submission
from fedsdr.deployment.runtime import beat, connect
from fedsdr.errors import UserError
from fedsdr.messages.flower import become_server
from fedsdr.progress import say, show


def work(address: str, certificates: bytes, token: str) -> None:
    """Take a run from the SuperLink and serve it to its end.

    Args:
        address: Address of the SuperLink, host:port on this machine.
        certificates: Certificates of the authority that signed its own.
        token: Token of the run's task.
    """
    logs: Queue[str | None] = Queue()
    mirror_output_to_queue(logs)
    client = connect(address, RuntimeTokenHttpInterceptor(token), certificates=certificates)
    grid = HttpGrid(address, root_certificates=certificates, token=token)

    def is_heard() -> bool:
        answer = beat(client)
        if answer is False:  # the run was stopped
            os.kill(os.getpid(), signal.SIGINT)
        return answer is not None

    heartbeat = HeartbeatSender(is_heard)
    heartbeat.start()
    task = client.PullTaskInput(PullTaskInputRequest())
    run = run_from_proto(task.run)
    become_server(run, task.context.node_id, task.task_id)
    grid.set_run(run)
    uploader = start_log_uploader(logs, node_id=0, run_id=run.run_id, client=client)
    status, details = SubStatus.FAILED, "the server app failed; see its log"
    try:
        serve_submission(grid, str(run.override_config.get("submission", "")))
        status, details = SubStatus.COMPLETED, ""
    except UserError as reason:
        say(f"fedsdr: {reason}")
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
    finally:
        flush_logs(logs)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        stop_log_uploader(logs, uploader)
        heartbeat.stop()


def main() -> None:
    """Serve the run given on standard input."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have disabled it
    show()
    given = json.load(sys.stdin)
    work(given["address"], Path(given["authority"]).read_bytes(), given["token"])


if __name__ == "__main__":
    main()
