"""The page's words in English and Chinese."""

# ruff: noqa: RUF001 (Chinese has marks of its own)
from __future__ import annotations

WORDS = {
    "en": {
        "text": "What are you looking for?",
        "example": "two dogs in the snow",
        "picture": "Picture",
        "drop": "Drop a picture here, paste or choose it.\nWith a sentence: the same, changed.",
        "instruction": "Instruction to the model",
        "folder": "Folder",
        "kind": "Kind",
        "all": "all",
        "text_kind": "text",
        "picture_kind": "picture",
        "video_kind": "video",
        "mixed_kind": "picture and text",
        "top": "Results",
        "rerank": "Rerank with LamRA-Rank",
        "search": "Search",
        "clear": "Clear",
        "more": "More like this",
        "like": "More like {name}",
        "similarity": "similarity",
        "nothing": "Nothing found with these filters.",
        "ask": "Type a sentence, drop a picture, or both.",
        "items": "{count} items of {source}, indexed by {model}",
        "approximate": "approximate search, recall@10 {recall}%",
        "not_there": "This index has no item {name}.",
        "none": "none",
        "error": "This cannot be done",
    },
    "zh": {
        "text": "想找什么？",
        "example": "雪地里的两只狗",
        "picture": "图片",
        "drop": "把图片拖到这里，粘贴或选择。\n加上一句话：同样的东西，但有所改变。",
        "instruction": "给模型的指令",
        "folder": "文件夹",
        "kind": "类型",
        "all": "全部",
        "text_kind": "文本",
        "picture_kind": "图片",
        "video_kind": "视频",
        "mixed_kind": "图文",
        "top": "结果数",
        "rerank": "用 LamRA-Rank 重排序",
        "search": "搜索",
        "clear": "清空",
        "more": "更多相似",
        "like": "与 {name} 相似",
        "similarity": "相似度",
        "nothing": "在这些筛选条件下没有结果。",
        "ask": "输入一句话，放入一张图片，或两者一起。",
        "items": "{source} 中的 {count} 个条目，由 {model} 建立索引",
        "approximate": "近似搜索，recall@10 {recall}%",
        "not_there": "这个索引中没有条目 {name}。",
        "none": "无",
        "error": "无法完成",
    },
}


def language_of(accepted: str) -> str:
    """A key of WORDS for a browser's Accept-Language."""
    return "zh" if accepted.strip().lower().startswith("zh") else "en"
