import type { TcmuUio } from '../lio/uio-devices.ts';
import type { UserBackstore } from '../lio/user-backstore.ts';
import type { TcmuDisk } from './tcmu-disk.ts';

/** A device of ours that there is, served or not. */
export interface TcmuEntry {
  readonly backstore: UserBackstore;
  uio: TcmuUio;
  deviceId: number | undefined;
  disk: TcmuDisk | undefined;
  /** Things happen to a device one after the other. */
  queue: Promise<void>;
  removed: boolean;
  repairs: number[];
  /** Why it is not served as it should be. */
  problem: string | undefined;
}
