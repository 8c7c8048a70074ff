import { type NetlinkHandle, requireNative } from './binding.ts';

// Kinds of messages: as in native/tcmu_netlink.h.
const DEVICE = 0;
const OVERFLOW = 1;
const EXPIRED = 2;
const REFUSED = 3;

/** Who hears of devices. Called from the event loop. */
export interface NetlinkListener {
  /**
   * An event of the kernel, which waits for answer() or leave().
   *
   * @param ticket which event of the device it is
   * @param message generic header and attributes
   */
  event(deviceId: number, ticket: number, message: Uint8Array): void;
  /** Events were lost. */
  overflow(): void;
  /** Nobody answered in time: the kernel was told that it failed. */
  expired(deviceId: number): void;
  /** The kernel did not take an answer. @param errno negative */
  refused(errno: number): void;
  /** The socket is of no use any more. @param errno negative */
  failed(errno: number): void;
}

/**
 * The kernel's events about TCMU devices, received and answered on a thread of their own: whoever made a device sleeps until the event is
 * answered, however busy the event loop is.
 */
export class NetlinkSocket {
  #handle: NetlinkHandle | undefined;

  /**
   * @param timeoutMs an event that is not answered by then is answered with a failure
   * @throws {Error} the system's error: ENOENT when the module target_core_user is not loaded, EPERM without privilege
   */
  constructor(timeoutMs: number, listener: NetlinkListener) {
    this.#handle = requireNative().netlinkOpen(timeoutMs, ({ kind, deviceId, ticket, errno, message }) => {
      if (kind === DEVICE) listener.event(deviceId, ticket, message);
      else if (kind === OVERFLOW) listener.overflow();
      else if (kind === EXPIRED) listener.expired(deviceId);
      else if (kind === REFUSED) listener.refused(errno);
      else listener.failed(errno);
    });
  }

  /**
   * Answers one event of a device, with 0 or a negative errno. False: it waits no more; the watchdog was first, or a later event of the
   * device has come, which waits for an answer of its own.
   */
  answer(deviceId: number, ticket: number, status: number): boolean {
    return this.#handle !== undefined && requireNative().netlinkAnswer(this.#handle, deviceId, ticket, status);
  }

  /** Another program answers the event. */
  leave(deviceId: number, ticket: number): boolean {
    return this.#handle !== undefined && requireNative().netlinkLeave(this.#handle, deviceId, ticket);
  }

  /**
   * Answers an event that was sent while nobody listened. An answer of another kind than the kernel waits for hangs whoever waits, for ever:
   * only for what is known.
   *
   * @param event the event's command
   * @returns 0 or a negative errno of sending; the kernel's own comes as refused()
   */
  answerMissed(event: number, deviceId: number, status: number): number {
    return requireNative().netlinkAnswerMissed(this.#open(), event, deviceId, status);
  }

  /** Whether the kernel waits for answers, from now on and after we are gone. @returns 0 or a negative errno */
  setAnswering(answers: boolean): number {
    return requireNative().netlinkSetFeatures(this.#open(), answers);
  }

  /** Ends the thread. What was not answered stays so. Safe to call twice. */
  close(): void {
    if (this.#handle === undefined) return;
    requireNative().netlinkClose(this.#handle);
    this.#handle = undefined;
  }

  #open(): NetlinkHandle {
    if (this.#handle === undefined) throw new TypeError('NetlinkSocket is closed');
    return this.#handle;
  }
}
