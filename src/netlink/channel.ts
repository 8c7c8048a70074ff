import { NetlinkSocket } from '../native/netlink-socket.ts';
import { parseTcmuEvent, type TcmuEvent } from './tcmu-events.ts';

const ADDED = 1;
const REMOVED = 2;

/** Somebody who is told nothing in this time is told that it failed, ms. */
export const ANSWER_TIMEOUT_MS = 20_000;

/** An event that somebody waits for in the kernel. */
export type AwaitedEvent = TcmuEvent & {
  /** Which event of its device it is: an answer that comes late does not hit the next. */
  readonly ticket: number;
};

export interface ChannelListener {
  /** Waits for answer() or leave(). */
  event(event: AwaitedEvent): void;
  /** Events were lost: what there is has to be looked for. */
  overflow(): void;
  /** An event was not answered in time, and the kernel was told that it failed. */
  expired(deviceId: number): void;
  /** Something is wrong, for the log. @param errno negative */
  trouble(what: string, errno: number): void;
  /** The socket is of no use any more. @param errno negative */
  failed(errno: number): void;
}

/** The kernel's events about TCMU devices, and the answers to them. */
export class TcmuChannel {
  readonly #socket: NetlinkSocket;

  /** @throws {Error} the system's error: ENOENT without the module target_core_user, EPERM without privilege */
  constructor(listener: ChannelListener, timeoutMs = ANSWER_TIMEOUT_MS) {
    this.#socket = new NetlinkSocket(timeoutMs, {
      event: (deviceId, ticket, message) => {
        const event = parseTcmuEvent(message);
        // Of no kind that is known: an answer would be a guess.
        if (event === undefined) this.#socket.leave(deviceId, ticket);
        else listener.event({ ...event, ticket });
      },
      overflow: () => listener.overflow(),
      expired: (deviceId) => listener.expired(deviceId),
      refused: (errno) => listener.trouble('the kernel did not take an answer', errno),
      failed: (errno) => listener.failed(errno),
    });
  }

  /** 0 or a negative errno, which whoever made or changed the device gets. False: the event waits no more. */
  answer({ deviceId, ticket }: AwaitedEvent, status: number): boolean {
    return this.#socket.answer(deviceId, ticket, status);
  }

  /** Another program answers. */
  leave({ deviceId, ticket }: AwaitedEvent): void {
    this.#socket.leave(deviceId, ticket);
  }

  /** Answers the adding of a device that began while nobody listened. Only when that is known to wait. */
  answerMissedAdd(deviceId: number, status: number): void {
    this.#socket.answerMissed(ADDED, deviceId, status);
  }

  /** The same for its removal. */
  answerMissedRemoval(deviceId: number, status: number): void {
    this.#socket.answerMissed(REMOVED, deviceId, status);
  }

  /** The kernel no longer waits for answers: nobody is there to give them. */
  endAnswering(): void {
    this.#socket.setAnswering(false);
  }

  close(): void {
    this.#socket.close();
  }
}
