import { openFileStorage } from '../../formats/storage/file.ts';
import type { StorageOpener } from '../../formats/storage/storage.ts';
import { native } from '../native/binding.ts';
import { openNativeStorage } from './native-storage.ts';

/** Opens a file or block device: through the addon where it is, else with what Node has. */
export const openStorage: StorageOpener = (path, options) =>
  native === undefined ? openFileStorage(path, options) : openNativeStorage(path, options);
