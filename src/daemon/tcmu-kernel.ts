import { closeSync, constants, openSync } from 'node:fs';
import { fromSystemError } from '../../formats/core/errors.ts';
import { ProcessLock } from '../io/process-lock.ts';
import { abortNetlinkWaiters, blockNetlink, freeNetlinkWaiters, tcmuModuleIsLoaded } from '../lio/tcmu-module.ts';
import { listUioDevices, type TcmuUio, uioDevice } from '../lio/uio-devices.ts';
import { type BackstoreName, UserBackstore } from '../lio/user-backstore.ts';
import { type ChannelListener, TcmuChannel } from '../netlink/channel.ts';

/** The file that tcmu-runner locks, too: only one of us can run. */
const LOCK_FILE = '/run/tcmu.lock';

/** An open UIO device. Of a real one all three descriptors are one. */
export interface UioDescriptors {
  readonly memoryFd: number;
  readonly eventFd: number;
  readonly kickFd: number;
  close(): void;
}

/** The channel's face for whoever answers. */
export type AnswerChannel = Pick<TcmuChannel, 'answer' | 'leave' | 'answerMissedAdd' | 'endAnswering' | 'close'>;

/** What serving TCMU devices needs of the kernel. Tests put their own in its place. */
export interface TcmuKernel {
  readonly isLoaded: () => boolean;
  /** @throws {LunetteError} LOCKED */
  takeLock(): Promise<{ release(): void }>;
  channel(listener: ChannelListener): AnswerChannel;
  blockNetlink(blocked: boolean): Promise<void>;
  abortNetlinkWaiters(): Promise<void>;
  freeNetlinkWaiters(): Promise<void>;
  devices(): Promise<readonly TcmuUio[]>;
  device(minor: number): Promise<TcmuUio | undefined>;
  backstore(name: Pick<BackstoreName, 'hba' | 'name'>): UserBackstore;
  /** @throws {LunetteError} LOCKED when another program has it open */
  open(uio: TcmuUio): UioDescriptors;
}

/** The one under this process. */
export const KERNEL: TcmuKernel = {
  isLoaded: () => tcmuModuleIsLoaded(),
  takeLock: () => ProcessLock.take(LOCK_FILE),
  channel: (listener) => new TcmuChannel(listener),
  blockNetlink: (blocked) => blockNetlink(blocked),
  abortNetlinkWaiters: () => abortNetlinkWaiters(),
  freeNetlinkWaiters: () => freeNetlinkWaiters(),
  devices: () => listUioDevices(),
  device: (minor) => uioDevice(minor),
  backstore: (name) => new UserBackstore(name),
  open(uio) {
    let fd: number;
    try {
      fd = openSync(uio.node, constants.O_RDWR | constants.O_NONBLOCK);
    } catch (error) {
      throw fromSystemError(error, 'opening the device', { path: uio.node });
    }
    return { memoryFd: fd, eventFd: fd, kickFd: fd, close: () => closeSync(fd) };
  },
};
