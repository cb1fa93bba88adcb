//! SQS: queues, and messages that are looked at and sent back.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, Message, MessageSystemAttributeName, QueueAttributeName,
};
use jiff::Timestamp;
use stoker_aws::call_error;
use stoker_core::error::{CallError, Failure};

use super::Setup;

/// Messages that one request receives or gives back.
const PER_CALL: usize = 10;
/// For so many seconds a message that is looked at is hidden from others, should this be killed meanwhile.
const HIDDEN: i32 = 60;

/// A queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// Its logical name in the stack.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// Its ARN.
    pub arn: String,
    /// Whether it keeps the order.
    pub is_fifo: bool,
    /// About how many messages it holds.
    pub messages: u64,
    /// Its redrive policy, as JSON.
    pub redrive_policy: Option<String>,
}

/// A message that was received.
#[derive(Debug, Clone, Default)]
pub struct QueuedMessage {
    /// Its id.
    pub id: String,
    /// By what it is deleted or given back.
    pub receipt: String,
    /// Its body.
    pub body: String,
    /// The ARN of the queue that gave it up.
    pub given_up_by: Option<String>,
    /// When it was sent.
    pub sent_at: Option<Timestamp>,
    /// What its sender wrote beside it.
    pub attributes: BTreeMap<String, String>,
}

impl Setup {
    /// A queue of the stack.
    pub async fn queue(&self, name: String, url: String) -> Result<Queue, CallError> {
        let mut attributes = self.queue_attributes(&url, QueueAttributeName::All).await?;
        Ok(Queue {
            arn: attributes.remove(&QueueAttributeName::QueueArn).unwrap_or_default(),
            is_fifo: attributes.get(&QueueAttributeName::FifoQueue).is_some_and(|value| value == "true"),
            messages: messages(&attributes).unwrap_or_default(),
            redrive_policy: attributes.remove(&QueueAttributeName::RedrivePolicy),
            name,
            url,
        })
    }

    /// About how many messages a queue holds.
    pub async fn messages(&self, url: &str) -> Result<u64, CallError> {
        let attributes = self.queue_attributes(url, QueueAttributeName::ApproximateNumberOfMessages).await?;
        messages(&attributes).ok_or_else(|| {
            let why = "the answer has no number of messages".to_owned();
            CallError::new("sqs:GetQueueAttributes", url, Failure::Unavailable, why)
        })
    }

    async fn queue_attributes(
        &self,
        url: &str,
        name: QueueAttributeName,
    ) -> Result<HashMap<QueueAttributeName, String>, CallError> {
        let answer = self.sqs.get_queue_attributes().queue_url(url).attribute_names(name).send().await;
        let answer = answer.map_err(|error| call_error("sqs:GetQueueAttributes", url, error))?;
        Ok(answer.attributes.unwrap_or_default())
    }

    /// Receives some messages, ten at most. They are hidden from others for a moment.
    pub async fn receive(&self, from: &Queue, most: usize) -> Result<Vec<QueuedMessage>, CallError> {
        let asked = self
            .sqs
            .receive_message()
            .queue_url(&from.url)
            .max_number_of_messages(i32::try_from(most.min(PER_CALL)).unwrap_or(1))
            .visibility_timeout(HIDDEN)
            // Otherwise SQS asks some of its servers only.
            .wait_time_seconds(1)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All");
        let answer =
            asked.send().await.map_err(|error| call_error("sqs:ReceiveMessage", &from.url, error))?;
        Ok(answer.messages.unwrap_or_default().into_iter().map(message).collect())
    }

    /// Sends a message; to a FIFO queue in a message group.
    pub async fn send(&self, to: &Queue, body: &str, group: Option<&str>) -> Result<(), CallError> {
        let asked = self.sqs.send_message().queue_url(&to.url).message_body(body);
        let sent = asked.set_message_group_id(group.map(str::to_owned)).send().await;
        sent.map(drop).map_err(|error| call_error("sqs:SendMessage", &to.url, error))
    }

    /// Deletes a message that was received.
    pub async fn delete_message(&self, from: &Queue, receipt: &str) -> Result<(), CallError> {
        let deleted = self.sqs.delete_message().queue_url(&from.url).receipt_handle(receipt).send().await;
        deleted.map(drop).map_err(|error| call_error("sqs:DeleteMessage", &from.url, error))
    }

    /// Makes messages visible that were only looked at. One that is not given back comes back by itself.
    pub async fn give_back(&self, queue: &Queue, receipts: &[String]) -> Result<(), CallError> {
        for some in receipts.chunks(PER_CALL) {
            let entries = some.iter().enumerate().filter_map(|(number, receipt)| {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder();
                entry.id(number.to_string()).receipt_handle(receipt).visibility_timeout(0).build().ok()
            });
            let asked = self.sqs.change_message_visibility_batch().queue_url(&queue.url);
            let given = asked.set_entries(Some(entries.collect())).send().await;
            given.map_err(|error| call_error("sqs:ChangeMessageVisibility", &queue.url, error))?;
        }
        Ok(())
    }

    /// Lets SQS send all messages of a dead-letter queue back to where they came from, in their order.
    pub async fn move_back(&self, dead: &Queue) -> Result<(), CallError> {
        let started = self.sqs.start_message_move_task().source_arn(&dead.arn).send().await;
        started.map(drop).map_err(|error| call_error("sqs:StartMessageMoveTask", &dead.arn, error))
    }
}

fn messages(attributes: &HashMap<QueueAttributeName, String>) -> Option<u64> {
    attributes.get(&QueueAttributeName::ApproximateNumberOfMessages)?.parse().ok()
}

fn message(message: Message) -> QueuedMessage {
    let mut system = message.attributes.unwrap_or_default();
    let sent = system.get(&MessageSystemAttributeName::SentTimestamp);
    let own = message.message_attributes.unwrap_or_default().into_iter();
    QueuedMessage {
        id: message.message_id.unwrap_or_default(),
        receipt: message.receipt_handle.unwrap_or_default(),
        body: message.body.unwrap_or_default(),
        sent_at: sent.and_then(|text| Timestamp::from_millisecond(text.parse().ok()?).ok()),
        given_up_by: system.remove(&MessageSystemAttributeName::DeadLetterQueueSourceArn),
        attributes: own.filter_map(|(name, value)| Some((name, value.string_value?))).collect(),
    }
}
