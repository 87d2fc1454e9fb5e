"""Services that answer whatever a request holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically

from briges_ros.errors import quoted
from briges_ros.ros.throttle import ThrottledLog

_Callback = Callable[[Any, Any], Any]


def answer_always(node: Any, log: ThrottledLog) -> None:
    """Have the services that a node has so far answer a request that they cannot deal with.

    rclpy raises out of the callback instead: for a transition that the state does not allow, and
    for a parameter of a type that does not exist. That leaves the client waiting.

    Args:
        node: the rclpy node.
        log: for what went wrong.
    """
    for service in node.services:
        callback = service.callback
        if service.srv_type is SetParameters:
            callback = _one_by_one(callback)
        service.callback = _answering(service.srv_type, callback, log)


def _answering(kind: Any, callback: _Callback, log: ThrottledLog) -> _Callback:
    def answer(request: Any, response: Any) -> Any:
        try:
            return callback(request, response)
        except Exception as error:
            why = quoted(str(error), 200)
            response = kind.Response()
            if kind is ChangeState:
                log.error(f'no such transition from here: {why}')
            elif kind is SetParametersAtomically:
                response.result = SetParametersResult(reason=f'not to be had: {why}')
            else:
                log.error(f'a request of {kind.__name__} cannot be answered: {why}')
            return response

    return answer


def _one_by_one(callback: _Callback) -> _Callback:
    """Set parameters so that one that raises does not take the answers of the others along."""

    def answer(request: Any, response: Any) -> Any:
        for parameter in request.parameters:
            one = SetParameters.Request(parameters=[parameter])
            try:
                response.results += callback(one, SetParameters.Response()).results
            except Exception as error:
                why = f'not to be had: {quoted(str(error), 200)}'
                response.results.append(SetParametersResult(reason=why))
        return response

    return answer
