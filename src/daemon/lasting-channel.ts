import type { AwaitedEvent, ChannelListener } from '../netlink/channel.ts';
import type { AnswerChannel } from './tcmu-kernel.ts';

/** A socket that failed is opened again after so long, then ever later, ms. */
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 30_000;

export interface LastingListener extends Omit<ChannelListener, 'failed'> {
  /** The socket failed: nothing is heard until back(). @param problem for people */
  lost(problem: string): void;
  /** It is open again: what came and went meanwhile has to be looked for. */
  back(): void;
}

/**
 * The kernel's events for as long as the process runs: a socket that fails is opened again. What waited for an answer then gets none of us:
 * whoever looks for devices when it is back ends that.
 */
export class LastingChannel implements AnswerChannel {
  readonly #open: (listener: ChannelListener) => AnswerChannel;
  readonly #listener: LastingListener;
  #channel: AnswerChannel | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;
  #problem: string | undefined;

  /** @throws {Error} what opening it the first time throws */
  constructor(open: (listener: ChannelListener) => AnswerChannel, listener: LastingListener) {
    this.#open = open;
    this.#listener = listener;
    this.#begin();
  }

  #begin(): void {
    const channel = this.#open({ ...this.#listener, failed: (errno) => this.#failed(channel, errno) });
    this.#channel = channel;
  }

  #failed(channel: AnswerChannel, errno: number): void {
    if (this.#channel !== channel) return;
    this.#channel = undefined;
    channel.close();
    this.#problem = `the netlink socket failed (errno ${-errno}): devices cannot be added or removed until it is open again`;
    this.#listener.lost(this.#problem);
    this.#reopenAfter(FIRST_RETRY_MS);
  }

  #reopenAfter(waitMs: number): void {
    if (this.#closed) return;
    this.#retry = setTimeout(() => {
      try {
        this.#begin();
      } catch {
        this.#reopenAfter(Math.min(2 * waitMs, LAST_RETRY_MS));
        return;
      }
      this.#problem = undefined;
      this.#listener.back();
    }, waitMs);
    this.#retry.unref();
  }

  /** What is wrong with it now, in words. */
  get problems(): readonly string[] {
    return this.#problem === undefined ? [] : [this.#problem];
  }

  /** False also while there is no socket. */
  answer(event: AwaitedEvent, status: number): boolean {
    return this.#channel?.answer(event, status) ?? false;
  }

  leave(event: AwaitedEvent): void {
    this.#channel?.leave(event);
  }

  answerMissedAdd(deviceId: number, status: number): void {
    this.#channel?.answerMissedAdd(deviceId, status);
  }

  endAnswering(): void {
    this.#channel?.endAnswering();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#channel?.close();
    this.#channel = undefined;
  }
}
