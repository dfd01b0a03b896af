"""The same few clips written in the forms of pose estimators."""

import csv
import json
from pathlib import Path

import numpy as np

IDS = ["wave_1", "wave_2", "kick_1", "kick_2"]
LABELS = [["clip", "label", "split", "subject"]] + [
    [id, id.split("_")[0], "train" if id.endswith("1") else "test", f"P{i % 2}"] for i, id in enumerate(IDS)
]


def poses(joints: int, channels: int = 3, clips: int = 4) -> dict[str, np.ndarray]:
    """Clips (M, T, V, C) float32; the last has two persons far apart; with three channels the last is a score."""
    made = {}
    for number, id in enumerate(IDS[:clips]):
        draw = np.random.default_rng(number)
        start = draw.uniform(50, 150, (1 + (number == 3), 1, joints, channels))
        if number == 3:
            start[1, ..., 0] += 300
        clip = start + draw.normal(0, 1, (len(start), 5 + number, joints, channels)).cumsum(axis=1)
        if channels == 3:
            clip[..., 2] = draw.uniform(0.2, 1, clip.shape[:3])
        made[id] = clip.round(3).astype(np.float32)
    return made


def write_labels(folder: Path, rows: list[list[str]] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows or LABELS)


def write_openpose(folder: Path, joints: int = 25, key: str = "pose_keypoints_2d", shuffle: bool = True) -> dict:
    write_labels(folder)
    made = poses(joints)
    for id, clip in made.items():
        (folder / id).mkdir()
        for t in range(clip.shape[1]):
            order = range(len(clip)) if t % 2 or not shuffle else reversed(range(len(clip)))
            people = [{"person_id": [-1], key: clip[m, t].reshape(-1).tolist()} for m in order]
            name = f"{id}_{t:012d}_keypoints.json"
            (folder / id / name).write_text(json.dumps({"version": 1.3, "people": people}))
    return made


def write_coco(folder: Path, form: str) -> dict:
    """`form`: dataset (one file), results (a file a clip), frames (a folder a clip), mmpose (a file a clip)."""
    write_labels(folder)
    made = poses(17)
    images, annotations, videos = [], [], []
    for number, (id, clip) in enumerate(made.items()):
        videos.append({"id": number, "name": id})
        rows, per_frame = [], []
        for t in range(clip.shape[1]):
            image = 100 * number + t
            images.append(
                {"id": image, "video_id": number, "frame_id": t, "file_name": f"{t}.jpg", "height": 480, "width": 640}
            )
            flat = [clip[m, t].reshape(-1).tolist() for m in range(len(clip))]
            annotations += [{"image_id": image, "keypoints": k, "track_id": m} for m, k in enumerate(flat)]
            own = [{"image_id": f"{t}.jpg", "category_id": 1, "keypoints": k, "score": 0.9} for k in flat]
            rows += own
            instances = [
                {"keypoints": clip[m, t, :, :2].tolist(), "keypoint_scores": clip[m, t, :, 2].tolist()}
                for m in range(len(clip))
            ]
            per_frame.append({"frame_id": t + 1, "instances": instances})
            if form == "frames":
                (folder / id).mkdir(exist_ok=True)
                (folder / id / f"{t:05d}.json").write_text(json.dumps(own))
        if form == "results":
            (folder / f"{id}.json").write_text(json.dumps(rows))
        if form == "mmpose":
            (folder / f"{id}.json").write_text(json.dumps({"meta_info": {}, "instance_info": per_frame}))
    if form == "dataset":
        content = {"images": images, "annotations": annotations, "videos": videos}
        (folder / "person_keypoints.json").write_text(json.dumps(content))
    return made


def write_mediapipe(folder: Path, form: str) -> dict:
    write_labels(folder)
    made = {
        id: np.concatenate([clip, np.full((*clip.shape[:3], 1), 0.5, np.float32)], -1)[:1]
        for id, clip in poses(33).items()
    }
    for id, clip in made.items():
        if form == "npy":
            np.save(folder / f"{id}.npy", clip[0])
        elif form == "json":
            frames = [
                {"pose_landmarks": [dict(zip(("x", "y", "z", "visibility"), p.tolist(), strict=True)) for p in frame]}
                for frame in clip[0]
            ]
            (folder / f"{id}.json").write_text(json.dumps(frames))
    if form == "npz":
        np.savez_compressed(folder / "all.npz", **made)
    return made


def table_rows(made: dict, names: list[str], channels: list[str]) -> list[list[str]]:
    rows = [["clip", "frame", "person", "joint", *channels]]
    for id, clip in made.items():
        for m, t, v in np.ndindex(clip.shape[:3]):
            rows.append([id, str(t), str(m), names[v], *(repr(float(value)) for value in clip[m, t, v])])
    return rows


def write_table(folder: Path, names: list[str], channels: list[str], form: str = "csv") -> dict:
    write_labels(folder)
    made = poses(len(names), len(channels))
    rows = table_rows(made, names, channels)
    if form == "csv":
        with (folder / "poses.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    else:
        columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
        kinds = {"clip": str, "joint": str, "frame": np.int64, "person": np.int64}
        np.savez(folder / "poses.npz", **{k: np.array(v, kinds.get(k, np.float64)) for k, v in columns.items()})
    return made
