// The calls of `start-build`, with the AWS SDK for JavaScript. It reads no policy and decides nothing: it does less than
// the function. The loop is shorter than that of Lambda's own runtime for Node, too.

import http from "node:http";
import {
  BatchGetBuildsCommand, CodeBuildClient, ListBuildsForProjectCommand, StartBuildCommand,
} from "@aws-sdk/client-codebuild";
import { BatchGetImageCommand, ECRClient } from "@aws-sdk/client-ecr";

const codebuild = new CodeBuildClient({});
const ecr = new ECRClient({});

async function handle(batch) {
  for (const record of batch.Records) {
    const push = JSON.parse(record.body).detail;
    const { ids } = await codebuild.send(
      new ListBuildsForProjectCommand({ projectName: "app", sortOrder: "DESCENDING" }),
    );
    const { builds } = await codebuild.send(new BatchGetBuildsCommand({ ids }));
    if (builds.some((build) => build.sourceVersion === push.commit)) continue;
    const imageIds = [push.branch, push.default_branch].map((line) => ({ imageTag: `app.${line}` }));
    const { images } = await ecr.send(new BatchGetImageCommand({ repositoryName: "stoker/app", imageIds }));
    const value = images.map((image) => image.imageId.imageDigest).join(" ");
    await codebuild.send(new StartBuildCommand({
      projectName: "app",
      sourceVersion: push.commit,
      environmentVariablesOverride: [{ name: "STOKER_CACHE_REFS", value, type: "PLAINTEXT" }],
      idempotencyToken: push.commit,
    }));
  }
  return { batchItemFailures: [] };
}

const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(":");
const agent = new http.Agent({ keepAlive: true });

function ask(method, path, body) {
  return new Promise((resolve, reject) => {
    const headers = body === undefined ? {} : { "content-length": Buffer.byteLength(body) };
    const request = http.request({ host, port, method, path, agent, headers }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (part) => { text += part; });
      answer.on("end", () => resolve({ headers: answer.headers, text }));
    });
    request.on("error", reject);
    request.end(body);
  });
}

for (;;) {
  const event = await ask("GET", "/2018-06-01/runtime/invocation/next");
  const answer = await handle(JSON.parse(event.text));
  const id = event.headers["lambda-runtime-aws-request-id"];
  await ask("POST", `/2018-06-01/runtime/invocation/${id}/response`, JSON.stringify(answer));
}
