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
  #ended = false;
  /** The socket that told of an event. Each numbers its own: a later one may have another event of the same device and number. */
  readonly #tellers = new WeakMap<AwaitedEvent, AnswerChannel>();
  #problem: string | undefined;

  /** @throws {Error} what opening it the first time throws */
  constructor(open: (listener: ChannelListener) => AnswerChannel, listener: LastingListener) {
    this.#open = open;
    this.#listener = listener;
    this.#begin();
  }

  #begin(): void {
    const channel = this.#open({
      ...this.#listener,
      event: (event) => {
        this.#tellers.set(event, channel);
        this.#listener.event(event);
      },
      failed: (errno) => this.#failed(channel, errno),
    });
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
    if (this.#ended) return;
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

  /** False also where the socket that told of the event is gone. */
  answer(event: AwaitedEvent, status: number): boolean {
    return this.#tellerOf(event)?.answer(event, status) ?? false;
  }

  leave(event: AwaitedEvent): void {
    this.#tellerOf(event)?.leave(event);
  }

  #tellerOf(event: AwaitedEvent): AnswerChannel | undefined {
    return this.#tellers.get(event) === this.#channel ? this.#channel : undefined;
  }

  answerMissedAdd(deviceId: number, status: number): void {
    this.#channel?.answerMissedAdd(deviceId, status);
  }

  /** The kernel no longer waits for answers, whether there is a socket at this time or not. None is opened after that. */
  endAnswering(): void {
    this.#end();
    try {
      if (this.#channel === undefined) this.#begin();
    } catch {
      return; // nobody can tell the kernel
    }
    this.#channel?.endAnswering();
  }

  #end(): void {
    this.#ended = true;
    clearTimeout(this.#retry);
  }

  close(): void {
    this.#end();
    this.#channel?.close();
    this.#channel = undefined;
  }
}
