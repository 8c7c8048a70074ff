import { type NetlinkHandle, requireNative } from './binding.ts';

// Kinds of messages: as in native/tcmu_netlink.h.
const DEVICE = 0;
const OVERFLOW = 1;
const EXPIRED = 2;
const REFUSED = 3;

/** Who hears of devices. Called from the event loop. */
export interface NetlinkListener {
  /** An event of the kernel, which waits for answer(deviceId) or leave(deviceId). @param message generic header and attributes */
  event(deviceId: number, message: Uint8Array): void;
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
    this.#handle = requireNative().netlinkOpen(timeoutMs, ({ kind, deviceId, errno, message }) => {
      if (kind === DEVICE) listener.event(deviceId, message);
      else if (kind === OVERFLOW) listener.overflow();
      else if (kind === EXPIRED) listener.expired(deviceId);
      else if (kind === REFUSED) listener.refused(errno);
      else listener.failed(errno);
    });
  }

  /** Answers the event that waits for a device, with 0 or a negative errno. False: none does; the watchdog may have been first. */
  answer(deviceId: number, status: number): boolean {
    return this.#handle !== undefined && requireNative().netlinkAnswer(this.#handle, deviceId, status);
  }

  /** Another program answers the event that waits for a device. */
  leave(deviceId: number): boolean {
    return this.#handle !== undefined && requireNative().netlinkLeave(this.#handle, deviceId);
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
