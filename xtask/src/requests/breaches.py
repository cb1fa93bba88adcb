"""Requests, each with a word of what validate.py has to find of it; None where AWS takes it."""

CODEBUILD, ECR = "CodeBuild_20161006.", "AmazonEC2ContainerRegistry_V20150921."
LOGS, SQS = "Logs_20140328.", "AmazonSQS."
ONE_IMAGE = {"repositoryName": "stoker/app", "imageIds": [{"imageTag": "main"}]}
ALL_IMAGES = {"repositoryName": "stoker/a--b__c", "filter": {"imageStatus": "ANY"}}
ONE_REPOSITORY = {"repositoryNames": ["stoker/app"]}
EVENT = {"Source": "stoker", "DetailType": "SweepTick", "Detail": "{}"}
APP = {"projectName": "app"}
QUEUE, FIFO = {"QueueUrl": "https://sqs/queue"}, {"QueueUrl": "https://sqs/queue.fifo", "MessageBody": "{}"}
QUERY = {"startTime": 1, "endTime": 2, "queryString": "fields @message"}
GROUP = {"logGroupName": "/aws/lambda/stoker-start-build"}


def started_with(variable):
    return APP | {"environmentVariablesOverride": [variable]}


BREACHES = [
    # What AWS takes.
    (CODEBUILD + "ListBuildsForProject", APP | {"nextToken": "t"}, None),
    (ECR + "DescribeImages", ALL_IMAGES | {"maxResults": 1000}, None),
    (SQS + "SendMessage", FIFO | {"MessageGroupId": "promotions"}, None),
    (
        None,
        "Action=SimulatePrincipalPolicy&Version=2010-05-08&PolicySourceArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fa"
        "&ActionNames.member.1=ecr%3APutImage&ActionNames.member.2=ecr%3AListImages&ResourceArns.member.1=%2A",
        None,
    ),
    # What the models tell.
    (CODEBUILD + "ListEverything", {}, "no such operation"),
    ("Code_20161006.ListBuildsForProject", APP, "no such operation"),
    (CODEBUILD + "StartBuild", {}, "has no projectName"),
    (CODEBUILD + "StartBuild", APP | {"sourceBranch": "main"}, "sourceBranch is not known"),
    (CODEBUILD + "StartBuild", {"projectName": 7}, "wrong type"),
    (CODEBUILD + "StartBuild", APP | {"privilegedModeOverride": "true"}, "wrong type"),
    (CODEBUILD + "StartBuild", APP | {"timeoutInMinutesOverride": True}, "wrong type"),
    (CODEBUILD + "StartBuild", APP | {"timeoutInMinutesOverride": 3}, "is 3, outside of its limits"),
    (CODEBUILD + "StartBuild", started_with({"name": "", "value": ""}), "[0].name has a length of 0"),
    (CODEBUILD + "StartBuild", started_with({"name": "A", "value": "", "type": "TEXT"}), "none of PLAINTEXT"),
    (CODEBUILD + "BatchGetBuilds", {"ids": []}, "length of 0"),
    (CODEBUILD + "BatchGetBuilds", {"ids": ["app:1"] * 101}, "length of 101"),
    (ECR + "BatchGetImage", ONE_IMAGE | {"repositoryName": "Stoker/App"}, "not of the form"),
    (ECR + "DescribeImages", ALL_IMAGES | {"maxResults": 1001}, "is 1001, outside of its limits"),
    ("AWSEvents.PutEvents", {"Entries": [EVENT] * 11}, "length of 11"),
    ("secretsmanager.GetSecretValue", {"SecretId": ""}, "length of 0"),
    (None, "Action=DescribeStacks&Version=2010-05-15&Stack=stoker", "Stack is not known"),
    (None, "Action=SimulatePrincipalPolicy&Version=2010-05-08&ActionNames.member.1=%2A", "has no PolicySourceArn"),
    # What the documentation tells.
    (CODEBUILD + "ListBuildsForProject", APP | {"sortOrder": "DESCENDING", "nextToken": "t"}, "sortOrder beside"),
    (ECR + "DescribeImages", ONE_IMAGE | {"nextToken": "t"}, "nextToken beside imageIds"),
    (ECR + "DescribeImages", ONE_IMAGE | {"maxResults": 10}, "maxResults beside imageIds"),
    (ECR + "DescribeRepositories", ONE_REPOSITORY | {"nextToken": "t"}, "nextToken beside names"),
    (ECR + "DescribeRepositories", ONE_REPOSITORY | {"maxResults": 10}, "maxResults beside names"),
    (LOGS + "StartQuery", QUERY, "exactly one kind"),
    (LOGS + "StartQuery", QUERY | GROUP | {"startTime": 3}, "ends before it starts"),
    (SQS + "ReceiveMessage", QUEUE | {"MaxNumberOfMessages": 11}, "not 1 to 10 messages"),
    (SQS + "ReceiveMessage", QUEUE | {"WaitTimeSeconds": 21}, "more than 20 s"),
    (SQS + "ReceiveMessage", QUEUE | {"VisibilityTimeout": 43201}, "more than 12 h"),
    (SQS + "ChangeMessageVisibilityBatch", QUEUE | {"Entries": []}, "not 1 to 10 entries"),
    (SQS + "SendMessage", FIFO, "no MessageGroupId"),
    (SQS + "SendMessage", FIFO | {"MessageGroupId": "promotions", "DelaySeconds": 1}, "DelaySeconds for a FIFO queue"),
]
