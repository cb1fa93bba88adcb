"""The local AWS knows no alarm of several metrics, so such a one becomes an alarm on the first of them; what CloudWatch
refuses of such alarms is refused here, too."""

from ministack.services.cloudformation import provisioners

_alarm_of_one = provisioners._cw_metric_alarm_record
_BESIDE = ("MetricName", "Namespace", "Dimensions", "Period", "Statistic", "ExtendedStatistic", "Unit")


def _alarm(name, props):
    metrics = props.get("Metrics")
    if not metrics:
        return _alarm_of_one(name, props)
    stats = [metric["MetricStat"] for metric in metrics if "MetricStat" in metric]
    results = [metric for metric in metrics if str(metric.get("ReturnData", True)).lower() == "true"]
    if any(props.get(key) for key in _BESIDE) or len(results) != 1 or not 1 <= len(stats) <= 10:
        raise ValueError("an alarm has one result of at most ten metrics, and no metric beside them")
    first = stats[0]
    one = {key: value for key, value in props.items() if key != "Metrics"}
    one.update(first["Metric"], Period=first["Period"], Statistic=first["Stat"])
    return _alarm_of_one(name, one)


provisioners._cw_metric_alarm_record = _alarm
